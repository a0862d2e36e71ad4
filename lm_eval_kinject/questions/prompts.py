"""What writers are asked, in words, and the JSON that they are to answer with.

What it is for: one function a request; whoever wants to know what a set was made with reads this file. What it does not
do: it sends nothing.

The one idea: a request's words are part of its name in the ledger. A word that is changed here makes other requests, so
that a set begun with an earlier release pays again for what has changed, and nothing is mixed up.

The demands are those of Ovadia et al. (arXiv 2312.05934): questions that are specific, have one right answer of four
and can be answered without seeing the passage; paraphrases that change no fact, are about as long and as different as
possible. The other styles are EntiGraph's (Yang et al., arXiv 2409.07431), question-answer pairs, and Active
Reading's (Lin et al., arXiv 2508.09494).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_kinject.questions.asking import Request
from lm_eval_kinject.records import Chunk

__all__ = [
    "answer_request",
    "apply_strategy_request",
    "entities_request",
    "paraphrase_request",
    "passage_of",
    "qa_request",
    "rank_request",
    "relation_request",
    "strategies_request",
    "write_request",
]

_JSON = "Answer with one JSON object and nothing else."


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_QUESTIONS = _object(
    questions=_list(_object(question=_STRING, options=_list(_object(text=_STRING, right=_BOOLEAN)), evidence=_STRING))
)
_ORDER = _object(order=_list(_INTEGER))
_LETTERS = _object(right=_list({"type": "string", "enum": ["A", "B", "C", "D"]}))
_PARAPHRASES = _object(paraphrases=_list(_STRING))
_ENTITIES = _object(entities=_list(_STRING))
_PAIRS = _object(pairs=_list(_object(question=_STRING, answer=_STRING)))
_STRATEGIES = _object(strategies=_list(_STRING))


def passage_of(chunk: Chunk) -> str:
    """A chunk as writers see it: its title, if it has one, and its text."""
    return f"{chunk.title}\n{chunk.text}" if chunk.title else chunk.text


# Questions ------------------------------------------------------------------------------------------------------------


_WRITER = f"""You write multiple choice questions that test whether somebody knows the facts of a passage.
- Each question asks for one specific fact that the passage states: a name, a number, a date, a place, a cause.
- It is asked of people who don't see the passage. It names what it is about (who, which event, which year, where),
  so that it can mean nothing else, and never speaks of a passage, text, article or author.
- It has four options, of which exactly one is right. The right one is in the passage's own words. The wrong ones
  are of the same kind, equally plausible and about equally long, false by the passage, and not matters of opinion.
- No option is "all of the above" or the like, and the question doesn't contain its answer.
- Evidence is the sentence of the passage, word by word, that holds the answer.
{_JSON} Its form: {{"questions": [{{"question": "…", "options": [{{"text": "…", "right": true}}, {{"text": "…",
"right": false}}, {{"text": "…", "right": false}}, {{"text": "…", "right": false}}], "evidence": "…"}}]}}"""


def write_request(
    chunk: Chunk, count: int, *, seed: int, had: Sequence[str] = (), complaints: Sequence[str] = ()
) -> Request:
    """Asks for questions on a chunk.

    Args:
        chunk: the passage.
        count: how many.
        seed: another one for each try.
        had: questions on this chunk that are good already.
        complaints: what was wrong with others that were tried.
    """
    parts = [f"Passage:\n{passage_of(chunk)}", f"Write {count} question{'s' if count > 1 else ''} on this passage."]
    if had:
        parts.append("There are these already; ask for other facts:\n" + "\n".join(f"- {one}" for one in had))
    if complaints:
        parts.append("Mistakes in an earlier try, not to be made again:\n" + "\n".join(f"- {c}" for c in complaints))
    return Request(_WRITER, "\n\n".join(parts), _QUESTIONS, temperature=0.7, seed=seed, most_tokens=400 * count)


_RANKER = f"""You order questions on a passage by how specific they are. The most specific one asks for a particular
fact that only somebody who knows this very passage could give; the least specific one can be answered by guessing,
by general knowledge, or in more than one way. {_JSON} Its form: {{"order": [2, 1]}}, the questions' numbers, the
most specific first."""


def rank_request(chunk: Chunk, questions: Sequence[str], *, seed: int) -> Request:
    """Asks for the order of some questions, the most specific first; they are numbered from 1."""
    listed = "\n".join(f"{n}. {question}" for n, question in enumerate(questions, start=1))
    user = f"Passage:\n{passage_of(chunk)}\n\nQuestions:\n{listed}"
    return Request(_RANKER, user, _ORDER, temperature=0.0, seed=seed, most_tokens=200)


_WITH = f"""You are shown a passage and a question with four options. Say which options are right by the passage
alone: none if it doesn't say, several if it leaves several open. {_JSON} Its form: {{"right": ["B"]}}, or
{{"right": []}}."""
_WITHOUT = f"""You are asked a question with four options. Choose the one that you think right; guess if you don't
know. {_JSON} Its form: {{"right": ["B"]}}, with exactly one letter."""


def answer_request(question: str, options: Sequence[str], *, passage: str | None, seed: int) -> Request:
    """Asks for the answer to a question, by a passage or without one."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    user = f"{question}\n{listed}"
    if passage is not None:
        user = f"Passage:\n{passage}\n\n{user}"
    return Request(_WITHOUT if passage is None else _WITH, user, _LETTERS, temperature=0.0, seed=seed, most_tokens=400)


# Wordings -------------------------------------------------------------------------------------------------------------


_PARAPHRASER = f"""You paraphrase passages.
- A paraphrase means exactly what the passage means. No fact is changed, added or left out: every name, number and
  date stands in it as it stands in the passage.
- It is about as long as the passage.
- The paraphrases differ from the passage and from each other as much as possible, in words and in the order of
  sentences.
{_JSON} Its form: {{"paraphrases": ["…", "…"]}}"""


def paraphrase_request(chunk: Chunk, count: int, *, seed: int, complaints: Sequence[str] = ()) -> Request:
    """Asks for paraphrases of a chunk; another seed for each try."""
    user = f"Passage:\n{passage_of(chunk)}\n\nWrite {count} paraphrase{'s' if count > 1 else ''} of this passage."
    if complaints:
        user += "\n\nMistakes in an earlier try, not to be made again:\n" + "\n".join(f"- {c}" for c in complaints)
    most = count * (2 * len(passage_of(chunk)) // 3 + 100)
    return Request(_PARAPHRASER, user, _PARAPHRASES, temperature=1.0, seed=seed, most_tokens=most)


_ENTITY = f"""You list the entities of a passage: people, organisations, places, works, events, concepts that it is
about, each by the name that the passage uses, the most important first. {_JSON} Its form: {{"entities": ["…",
"…"]}}"""


def entities_request(chunk: Chunk, *, seed: int) -> Request:
    """EntiGraph's first step: the entities of a chunk."""
    return Request(_ENTITY, f"Passage:\n{passage_of(chunk)}", _ENTITIES, temperature=0.0, seed=seed, most_tokens=800)


_RELATION = """You explain, as an analyst, how some entities of a passage relate to each other, in the light of what
the passage says. Use its facts only: no name, number or date that it doesn't give. Write one or two paragraphs of
plain prose that can be understood without the passage, and nothing else."""


def relation_request(chunk: Chunk, entities: Sequence[str], *, seed: int) -> Request:
    """EntiGraph's second step: how two or three entities of a chunk relate."""
    user = f"Passage:\n{passage_of(chunk)}\n\nEntities: {'; '.join(entities)}"
    return Request(_RELATION, user, None, temperature=1.0, seed=seed, most_tokens=800)


_QA = f"""You write questions with their answers that teach the facts of a passage to somebody who won't see it.
- Each question names what it is about, so that it can mean nothing else, and never speaks of a passage or text.
- Each answer is a full sentence with facts of the passage only.
- Together they cover all that the passage says.
{_JSON} Its form: {{"pairs": [{{"question": "…", "answer": "…"}}]}}"""


def qa_request(chunk: Chunk, count: int, *, seed: int, complaints: Sequence[str] = ()) -> Request:
    """Asks for question-answer pairs on a chunk."""
    user = f"Passage:\n{passage_of(chunk)}\n\nWrite {count} questions with answers."
    if complaints:
        user += "\n\nMistakes in an earlier try, not to be made again:\n" + "\n".join(f"- {c}" for c in complaints)
    return Request(_QA, user, _PAIRS, temperature=1.0, seed=seed, most_tokens=150 * count + 200)


_STRATEGIST = f"""You plan how to learn the facts of a passage by heart. Name different ways of working on this very
passage, such as a timeline, an explanation to a child, a rhyme, flash cards, a comparison, a dialogue, each in one
sentence that says what to write. {_JSON} Its form: {{"strategies": ["…", "…"]}}"""


def strategies_request(chunk: Chunk, count: int, *, seed: int) -> Request:
    """Active Reading's first step: ways to study a chunk."""
    user = f"Passage:\n{passage_of(chunk)}\n\nName {count} ways."
    return Request(_STRATEGIST, user, _STRATEGIES, temperature=1.0, seed=seed, most_tokens=80 * count + 200)


_STUDY = """You study a passage in the way that you are told, and write down the result. Use the passage's facts
only: no name, number or date that it doesn't give. Write what can be understood without the passage, and nothing
else."""


def apply_strategy_request(chunk: Chunk, strategy: str, *, seed: int) -> Request:
    """Active Reading's second step: a chunk studied in one way."""
    user = f"Passage:\n{passage_of(chunk)}\n\nThe way: {strategy}"
    return Request(_STUDY, user, None, temperature=1.0, seed=seed, most_tokens=1000)
