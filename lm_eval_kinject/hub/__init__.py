"""The Hugging Face Hub: our only importer of ``huggingface_hub``, in modules named after what a user does.

* find and use: fetch.py (at the bottom of the import order: anyone may call it), registry.py (records of adapters, for
  the models), adapters.py (verifies and registers them)
* publish: push.py, with content.py (what may go), cards.py (``kinject.json`` and the card), publish.py (the one commit)
* submit scores: submit.py, with eval_results.py (reads lm_eval's results, and writes the Hub's formats of scores)

client.py is the floor of them all: patience, errors to act on, no tokens in texts.
"""
