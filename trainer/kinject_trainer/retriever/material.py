"""What a retriever is trained and measured on: chunks, and questions that name their chunk.

What it is for: `open_material` finds a recipe's corpus and questions and checks that they belong together,
`open_measured` the same for what is measured, `make_pairs` looks for hard negatives. What it does not do: no model is
loaded.

The one idea: two worlds of the newswire that share no event. `TRAINING` has all kinds of event but those that the
embedded reader never saw; `HELD_OUT` has these alone, as the test edition asks for them. So what is measured is whether
a retriever has learned to tell events apart, not whether it has seen the questions' templates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kinject_trainer.data import shuffled
from kinject_trainer.documents import check_revision
from kinject_trainer.questions import Question, content_id, questions_in, read_question, read_questions
from kinject_trainer.retriever.plan import HELD_OUT, TRAINING, Contrastive, Measured, RetrieverRecipe
from kinject_trainer.rows import ROW_FILES, find_rows
from lm_eval_kinject.corpus import Corpus, load_corpus
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import fingerprint_records
from lm_eval_kinject.records import Query

__all__ = ["Material", "Pair", "make_pairs", "open_material", "open_measured"]

TRAINING_SEED = 3110
_EVENTS = 800
_SHOWN = 3  # of the questions that an error lists
_DEEPER = 20  # hits looked at beyond the negatives that are wanted: some have the answer in them


@dataclass(frozen=True)
class Material:
    """A corpus, and questions about it.

    Attributes:
        corpus: all chunks.
        questions: each with its chunk as ``gold``; none where only text is trained on.
        provenance: what names them in results: plain, path-free.
    """

    corpus: Corpus
    questions: Sequence[Question]
    provenance: Mapping[str, Any]


class Pair(NamedTuple):
    """Texts: a question, the chunk that answers it, and chunks that don't."""

    question: str
    chunk: str
    negatives: tuple[str, ...] = ()


# Opening --------------------------------------------------------------------------------------------------------------


def open_material(recipe: RetrieverRecipe) -> Material:
    """Finds what a recipe trains on.

    Raises:
        CorpusError: not there, malformed, of another revision; test questions; questions without a chunk of the corpus.
    """
    if recipe.corpus == TRAINING:
        return _training_world()
    at_hub = recipe.corpus_revision and "/" in recipe.corpus and not Path(recipe.corpus).expanduser().exists()
    corpus = load_corpus(f"{recipe.corpus}@{recipe.corpus_revision}" if at_hub else recipe.corpus)
    if not at_hub:
        check_revision(recipe.corpus, recipe.corpus_revision, corpus.revision, corpus.fingerprint)
    questions = () if recipe.questions is None else read_questions(recipe.questions, "questions")
    return _material(corpus, questions, recipe.public()["questions"])


def open_measured(recipe: RetrieverRecipe, trained: Material) -> Material | None:
    """Finds what a recipe is measured on; None: nothing is.

    Raises:
        CorpusError: as `open_material`, or one of its questions is trained on.
    """
    measured = recipe.measure
    if measured is None:
        return None
    if measured == HELD_OUT:
        found = _held_out_world()
    else:
        assert isinstance(measured, Measured)  # the only other
        file = _test_file(measured.questions)
        rows = questions_in(file, "measure.questions")
        found = _material(load_corpus(measured.corpus), rows, recipe.public()["measure"]["questions"])
    known = {content_id(question.text) for question in trained.questions}
    both = [question for question in found.questions if content_id(question.text) in known]
    if both:
        raise CorpusError(
            f"{len(both)} of {len(found.questions)} questions that recall is to be measured on are trained on, such as "
            f"{both[0].text!r}: remove them from one of the two."
        )
    return found


def _test_file(spec: str) -> Path:
    found = find_rows(Path(spec).expanduser(), "test")
    if found is None:
        raise CorpusError(
            f"measure.questions {spec}: no such folder with a test split, or {' or '.join(ROW_FILES)} file; correct "
            f"the place."
        )
    return found


def _material(corpus: Corpus, questions: Sequence[Question], name: str | None) -> Material:
    there = set(corpus.ids)
    without = [question for question in questions if question.gold not in there]
    if without:
        some = ", ".join(f"{question.id} ({question.gold or 'names none'})" for question in without[:_SHOWN])
        raise CorpusError(
            f"{len(without)} of {len(questions)} questions have no `source_chunk` that is in the corpus {corpus.name}: "
            f"{some}. Name the corpus they were asked about, or remove them."
        )
    said = {
        "name": name,
        "questions": len(questions),
        "fingerprint": fingerprint_records(list(question) for question in questions),
    }
    return Material(corpus, tuple(questions), {"corpus": corpus.provenance(), "questions": said if questions else None})


# The newswire ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _training_world() -> Material:
    from lm_eval_kinject.corpus.sources.newswire import READER_HELD_OUT_KINDS, EditionSize, load_kinds, make_edition

    kinds = [kind for kind in load_kinds(edition=2) if kind.kind not in READER_HELD_OUT_KINDS]
    size = EditionSize(_EVENTS, 2, 0, 0, 0, 0, 0, 0, 0)
    return _of_edition(TRAINING, make_edition(TRAINING_SEED, size, kinds), None)


@lru_cache(maxsize=1)
def _held_out_world() -> Material:
    from lm_eval_kinject.corpus.sources.newswire import READER_HELD_OUT_KINDS, EditionSize, make_edition
    from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED

    # Without paraphrases, which take time and draw nothing: chunks and questions are those of the whole edition.
    size = EditionSize(paraphrases=0, validation_paraphrases=0)
    return _of_edition(HELD_OUT, make_edition(BUNDLED_SEED, size, edition=2), READER_HELD_OUT_KINDS)


def _of_edition(name: str, edition: Any, kinds: Sequence[str] | None) -> Material:
    """An edition's chunks and test questions, of all kinds or of some; read as a written edition is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lm_eval_kinject.corpus.sources.newswire.edition import revision_of

    chunks = [row for row in edition.chunks if kinds is None or row["kind"] in kinds]
    rows = [row for row in edition.test if kinds is None or row["kind"] in kinds]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chunks.parquet"
        pq.write_table(pa.Table.from_pylist(chunks), file)
        corpus = load_corpus(file)
    of = "all kinds of event but those held out" if kinds is None else f"of the kinds {', '.join(kinds)}"
    said = f"news made up from the seed {edition.seed}, {of}"
    corpus = replace(corpus, name=name, source=said, revision=revision_of(edition), licence="cc0-1.0")
    return _material(corpus, [read_question(row, number) for number, row in enumerate(rows, start=1)], name)


# Pairs ----------------------------------------------------------------------------------------------------------------


def make_pairs(material: Material, how: Contrastive, seed: int) -> list[Pair]:
    """The pairs that are trained on, with their hard negatives.

    A hard negative is, as in DPR, one of BM25's best chunks in which the answer doesn't stand; where there are too few
    of these, one in which it does. It is never the question's own chunk, nor one with the same text.

    Raises:
        CorpusError: the corpus has too few chunks for so many negatives.
    """
    from lm_eval_kinject.retrieval import make_retriever

    chosen = shuffled(len(material.questions), seed)[: how.pairs]
    questions = [material.questions[number] for number in sorted(chosen)]
    texts = {question.gold: material.corpus.by_id[question.gold].text for question in questions}
    if not how.hard_negatives:
        return [Pair(question.text, texts[question.gold]) for question in questions]
    depth = min(how.hard_negatives + 1 + _DEEPER, len(material.corpus))
    hits = make_retriever("bm25", material.corpus).search([Query(question.text) for question in questions], depth)
    pairs = []
    for question, found in zip(questions, hits, strict=True):
        others = [hit.chunk.text for hit in found if hit.chunk.text != texts[question.gold]]
        answered = [text for text in others if question.answer.casefold() in text.casefold()]
        best = [*(text for text in others if text not in answered), *answered]
        negatives = tuple(dict.fromkeys(best))[: how.hard_negatives]
        if len(negatives) < how.hard_negatives:
            raise CorpusError(
                f"The corpus {material.corpus.name} has only {len(negatives)} chunks beside the right one for "
                f"contrastive.hard_negatives {how.hard_negatives}: lower it."
            )
        pairs.append(Pair(question.text, texts[question.gold], negatives))
    return pairs
