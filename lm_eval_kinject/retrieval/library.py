"""Corpora and retrievers by name, each loaded when first needed and shared by all that ask for it.

What it is for: `Search` is the stage that takes ``retriever=``, ``k=`` and ``corpus=``; a `Library` answers its queries
for one run, from a `Shelf` that many runs of one process can share. What it does not do: search (the retrievers do),
rank hits again (`rerank`) or replace them (`probe`); it has what such stages are asked for, `Reranker` and `Probe`.

The one idea: what a run used and what a process has loaded are two things. Six runs over K load a corpus, an index and
an encoder once and embed each question once, and each still says in its results just what it used itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from lm_eval_kinject.corpus import Corpus, load_corpus
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval.filters import Allowed, parse_filter
from lm_eval_kinject.retrieval.make import DEFAULT_SEED, make_retriever, retriever_problems
from lm_eval_kinject.retrieval.protocol import Hits, Retriever, check_k
from lm_eval_kinject.retrieval.stores import FLAT
from lm_eval_kinject.stages import Stage, argument, optional, register, slot, text, whole

__all__ = [
    "DEPTH", "AsFound", "Found", "Library", "NoProbe", "Probe", "Ranker", "Reranker", "Search", "Shelf", "clock",
]  # fmt: skip

DEPTH = 5
"""Hits looked at for recall@5 where the gold chunk is known, also when fewer go into the prompt."""

slot("search", "which chunks are found")
slot("rerank", "what looks at the hits again", default="none")
slot("probe", "whether the right chunk is put among wrong ones", default="none")


@register
@dataclass(frozen=True)
class Search(Stage):
    """Finds the chunks."""

    slot: ClassVar[str] = "search"
    name: ClassVar[str] = "retriever"

    retriever: str = argument(
        "`minilm`, `static` (minilm's word pieces, distilled into a table), `bge`, `bge-large-en`, `e5`, `mxbai`, "
        "`contriever`, `dragon`, `dpr`, `bm25`, `hybrid` (ranks of minilm and bm25 fused; `hybrid:NAME` of NAME and "
        "bm25); any sentence-transformers id or folder; `NAME:PATH` for a known model's rules with weights of your "
        "own; controls `oracle` (the right chunk), `random`, `full` (everything), `none`",
        # lm_eval reads the word none as None
        lambda name, value: "none" if value is None else text(name, value),
        "minilm",
    )
    k: int = argument("chunks in the prompt; `k=0` has the bits of `--model hf`", whole(0, "chunks"), 3)
    corpus: str | None = argument(
        "a bundled name, folder, file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, `.md`, `.html`, `.docx`, "
        "`.pdf`, `.epub`), Hub data set `owner/name[@revision]`, `wikipedia:NAME`, or `realtimeqa:PATH`",
        optional(text),
        None,
        shown="what the task declares",
    )
    index: str | None = argument(
        "a prebuilt index, a folder or Hub id", optional(text), None, shown="built once into the cache"
    )
    store: str = argument(
        "what holds the vectors: `flat` (exact); smaller copies that may miss `hnsw` (`;M=`, `;ef=`), `ivf-pq` "
        "(`;nlist=`, `;nprobe=`, `;m=`), `sq8`; `qdrant` (`;url=` of a server); parameters behind semicolons: "
        "`store=hnsw;M=32`",
        text,
        FLAT,
    )
    filter: str | None = argument(
        "which chunks may be found, by date and source, decided before ranking: `date<2026-11;source=NAME`",
        optional(text),
        None,
    )
    retriever_dtype: str = argument("`float32`, or `bfloat16` where the processor has it", text, "float32")
    retriever_backend: str = argument(
        "what runs it on a processor: `torch`, or `openvino` (extra `openvino`), which is faster", text, "torch"
    )
    retriever_revision: str | None = argument(
        "of the retriever's weights", optional(text), None, shown="the one listed for a known name"
    )
    retriever_seed: int = argument("of `retriever=random` and `probe=random`", whole(0, "the seed"), DEFAULT_SEED)

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """What `make_retriever` would refuse, and chunks of no retriever."""
        retriever = given.get("retriever", cls.retriever)
        problems = []
        if retriever == "none" and given.get("k", 0) > 0:
            problems.append(f"retriever=none with k={given['k']} contradict each other; pass k=0, or another retriever")
        return problems + retriever_problems(
            retriever,
            dtype=given.get("retriever_dtype", cls.retriever_dtype),
            backend=given.get("retriever_backend", cls.retriever_backend),
            index=given.get("index"),
            revision=given.get("retriever_revision"),
            store=given.get("store", cls.store),
            filter=given.get("filter"),
        )

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> Search:
        """Without a retriever there are no chunks."""
        return cls(**{**given, "k": 0} if given.get("retriever") == "none" else given)

    @property
    def needs_gold(self) -> str | None:
        """As of a `Probe`."""
        return "retriever=oracle" if self.retriever == "oracle" else None

    def make(self, corpus: Corpus, device: str) -> Retriever:
        """The retriever over a corpus, its index built or opened; see `make_retriever`."""
        return make_retriever(
            self.retriever,
            corpus,
            dtype="bfloat16" if self.retriever_dtype == "bfloat16" else "float32",
            backend="openvino" if self.retriever_backend == "openvino" else "torch",
            index=self.index,
            revision=self.retriever_revision,
            seed=self.retriever_seed,
            device=device,
            store=self.store,
            filter=self.filter,
        )

    def allowed(self, corpus: Corpus) -> Allowed | None:
        """The chunks of a corpus that may be found; None without a filter."""
        return None if self.filter is None else parse_filter(self.filter).of(corpus)

    def provenance(self) -> dict[str, Any]:
        """Name and k; the retriever itself says the rest (``retrievers`` in the results)."""
        return {"name": self.name, "k": self.k}


class Ranker(Protocol):
    """A reranker that is ready: its model, if it has one, is loaded."""

    def rank(self, retriever: Retriever, queries: Sequence[Query], found: Sequence[Hits]) -> list[Hits]:
        """The same hits of each query, best first, ranks from 1; hits that it can't tell apart stay as they were.

        Neither the other queries nor their order change a list.

        Args:
            retriever: that found them.
            queries: shape (queries,).
            found: the hits of each query, best first.

        Raises:
            RetrievalError: it can't rank what this retriever finds.
        """

    def provenance(self) -> dict[str, Any]:
        """What it was made from, plain and path-free, with the stage's own arguments."""


@dataclass(frozen=True)
class Reranker(Stage):
    """Looks at more hits than go into the prompt and ranks them again."""

    slot: ClassVar[str] = "rerank"

    def depth(self, k: int) -> int:
        """How many hits it looks at for ``k`` in the prompt; those behind them keep their order."""
        raise NotImplementedError

    def load(self, device: str) -> Ranker:
        """What ranks, its model loaded; kept for all runs of the process whose stage has an equal `model_stage`."""
        raise NotImplementedError

    def model_stage(self) -> Reranker:
        """This stage with the defaults of all that doesn't decide what `load` returns."""
        return self


@register
@dataclass(frozen=True)
class AsFound(Reranker):
    """The retriever's ranks stand."""

    name: ClassVar[str] = "none"

    def depth(self, k: int) -> int:
        """No more than go into the prompt."""
        return k

    def load(self, device: str) -> Ranker:
        """There is nothing to load."""
        return self

    def rank(self, retriever: Retriever, queries: Sequence[Query], found: Sequence[Hits]) -> list[Hits]:
        """As they come."""
        return list(found)


@dataclass(frozen=True)
class Probe(Stage):
    """Decides anew which chunks stand in the prompt, from those found and the chunk that is known to be right."""

    slot: ClassVar[str] = "probe"

    @property
    def needs_gold(self) -> str | None:
        """The argument that needs each question's source chunk, for messages; None if it isn't needed."""
        return None

    def prompt(self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search) -> list[Hits]:
        """The hits that go into each query's prompt, best first, ranks from 1.

        Args:
            corpus: what was searched.
            queries: each with the id of its right chunk.
            found: the hits of each query, best first; ``search.k`` at least.
            search: says how many chunks go into the prompt, and the seed.

        Raises:
            RetrievalError: a query's right chunk is unknown.
        """
        raise NotImplementedError


@register
@dataclass(frozen=True)
class NoProbe(Probe):
    """What was found goes into the prompt."""

    name: ClassVar[str] = "none"

    def prompt(self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search) -> list[Hits]:
        """The best k; of ``retriever=full`` everything, of which the budget decides how much is read."""
        return list(found) if search.retriever == "full" else [hits[: search.k] for hits in found]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for one query.

    Attributes:
        prompt: what goes into the prompt, before the budget.
        hits: all that were looked at, in their final ranks; recall is taken of these.
        retrieved: the same, in the retriever's own ranks.
        more: the best hits for a long context; empty where none was asked for.
    """

    prompt: Hits
    hits: Hits
    retrieved: Hits
    more: Hits = ()


@dataclass
class Shelf:
    """What a process has loaded: corpora by their spec, retrievers by spec, settings and device, rerankers by both."""

    corpora: dict[str, Corpus] = field(default_factory=dict)
    retrievers: dict[tuple[str, Search, str], Retriever] = field(default_factory=dict)
    rankers: dict[tuple[Reranker, str], Ranker] = field(default_factory=dict)


@dataclass
class Library:
    """Corpora and retrievers of one run, each loaded when first needed.

    Attributes:
        search: which retriever, over what.
        reranker: what ranks its hits again.
        probe: what replaces them, if anything.
        device: where models that embed or rank run, for example ``cpu``.
        where: names the arguments in an error.
        more: hits that a long context is taken from; figures look at no more for it.
        seconds: time spent per stage (``corpus``, ``index``, ``retrieval``, ``reranking``).
        shelf: where they are kept; shared between runs, if given.
        corpora: those that this run used, by spec.
        retrievers: those that this run used, by the corpus's spec.
        ranker: the loaded reranker, once this run has used it.
    """

    search: Search
    reranker: Reranker
    probe: Probe
    device: str
    where: str
    more: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf)
    corpora: dict[str, Corpus] = field(default_factory=dict)
    retrievers: dict[str, Retriever] = field(default_factory=dict)
    ranker: Ranker | None = None
    _sizes: dict[str, int] = field(default_factory=dict)  # chunks that may be found, by the corpus's spec

    def corpus(self, spec: str) -> Corpus:
        """Loads a corpus and checks that it holds as many chunks as are asked for.

        Raises:
            CorpusError: it can't be loaded.
            ArgumentError: ``k`` is larger than the corpus, or than what the filter leaves of it.
        """
        if spec not in self.corpora:
            if spec not in self.shelf.corpora:
                with clock(self.seconds, "corpus"):
                    self.shelf.corpora[spec] = load_corpus(spec)
            corpus = self.shelf.corpora[spec]
            k = self.search.k
            allowed = self.search.allowed(corpus)
            self._sizes[spec] = len(corpus.chunks) if allowed is None else len(allowed)
            if k > len(corpus.chunks) and self.search.retriever != "full":
                raise ArgumentError(
                    f"k={k}, but the corpus {corpus.name} has only {len(corpus.chunks)} chunks; lower k=, or pass a "
                    "larger corpus=",
                    self.where,
                )
            if self.search.retriever != "full":
                check_k(k, corpus, allowed)
            self.corpora[spec] = corpus
        return self.corpora[spec]

    def retriever(self, spec: str) -> Retriever:
        """Returns the retriever over a corpus, with its index built or opened."""
        if spec not in self.retrievers:
            corpus = self.corpus(spec)
            # k decides nothing about a retriever, and the corpus is in the key by its own spec
            key = (spec, replace(self.search, k=0, corpus=None), self.device)
            if key not in self.shelf.retrievers:
                with clock(self.seconds, "index"):
                    self.shelf.retrievers[key] = self.search.make(corpus, self.device)
            self.retrievers[spec] = self.shelf.retrievers[key]
        return self.retrievers[spec]

    def find(self, spec: str, queries: Sequence[Query]) -> dict[Query, Found]:
        """Searches a corpus for all queries in one batch, equal ones once; what one leaves out no reranker sees."""
        unique = list(dict.fromkeys(queries))
        retriever = self.retriever(spec)
        corpus = self.corpora[spec]
        wanted = max(self.search.k, self.reranker.depth(self.search.k))
        if any(query.gold is not None for query in unique):
            wanted = max(wanted, DEPTH)
        depth = max(wanted, self.more)
        spare = max((len(corpus.by_document.get(query.without or "", ())) for query in unique), default=0)
        with clock(self.seconds, "retrieval"):
            retrieved = retriever.search(unique, min(depth + spare, self._sizes[spec]))
        if spare:
            kept = depth if self.search.retriever != "full" else None
            retrieved = [_without(query, hits)[:kept] for query, hits in zip(unique, retrieved, strict=True)]
        hits = self._reranked(retriever, unique, retrieved)
        more: Sequence[Hits] = [found[: self.more] for found in hits]
        if self.more > wanted:
            retrieved, hits = ([found[:wanted] for found in lists] for lists in (retrieved, hits))
        prompts = self.probe.prompt(corpus, unique, hits, self.search)
        return {query: Found(*four) for query, *four in zip(unique, prompts, hits, retrieved, more, strict=True)}

    def _reranked(self, retriever: Retriever, queries: Sequence[Query], retrieved: Sequence[Hits]) -> Sequence[Hits]:
        """The best hits of each query ranked again, and the others behind them."""
        if isinstance(self.reranker, AsFound):
            return retrieved
        if self.ranker is None:
            key = (self.reranker.model_stage(), self.device)
            if key not in self.shelf.rankers:
                with clock(self.seconds, "index"):
                    self.shelf.rankers[key] = self.reranker.load(self.device)
            self.ranker = self.shelf.rankers[key]
        depth = self.reranker.depth(self.search.k)
        with clock(self.seconds, "reranking"):
            ranked = self.ranker.rank(retriever, queries, [hits[:depth] for hits in retrieved])
        return [(*first, *hits[depth:]) for first, hits in zip(ranked, retrieved, strict=True)]

    def reranking(self) -> dict[str, Any]:
        """What a result says of the reranker: the stage's arguments, and the model's identity once it is loaded."""
        made_from = {} if self.ranker is None else self.ranker.provenance()
        return {**self.reranker.provenance(), **made_from}


def _without(query: Query, hits: Hits) -> Hits:
    """The hits but those of the document that a query leaves out, in ranks of their own."""
    kept = [hit for hit in hits if (hit.chunk.document_id or hit.chunk.id) != query.without]
    return tuple(replace(hit, rank=rank) for rank, hit in enumerate(kept, start=1))


class clock:
    """Adds the seconds that its block takes to ``seconds[stage]``."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage, self._began = seconds, stage, 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        passed = time.perf_counter() - self._began
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + passed
