"""Pages that people look at: a leaderboard, samples of results, documents to ask, a question set to review.

* data, without a browser: board.py (submissions to rows, and why some are kept out), against.py (is this row better
  than that one?), command.py (the command whose result a row is), samples.py (questions, prompts and hits), shelf.py
  (documents, and what is found in them), talk.py (questions put to them), desk.py (a question under review, its HTML
  too)
* looks: look.py (escaping, styles), tables.py (a board as HTML), sheets.py (a sample as HTML), turns.py (questions and
  answers as HTML)
* the pages themselves, in Gradio: leaderboard.py, show.py, chat.py, review.py, serve.py; space.py writes the
  leaderboard's Space
"""
