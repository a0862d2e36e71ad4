"""From the word after ``retriever=`` to a retriever that is ready to search.

What it is for: naming (known names, controls, models by id or path), the checks that need no model, and putting
encoder and index together. What it does not do: anything that the retrievers do themselves.

The one idea: whatever can be wrong with the arguments is found by :func:`retriever_problems`, which loads nothing, so
that a long run fails in its first second and lists everything at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError, IndexStoreError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.log import log
from lm_eval_kinject.retrieval.controls import Full, NoRetrieval, Oracle, Random
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.encoders import KNOWN, Backend, Dtype, Encoder, EncoderSpec, load_encoder, load_trainable
from lm_eval_kinject.retrieval.filters import parse_filter
from lm_eval_kinject.retrieval.hybrid import Hybrid
from lm_eval_kinject.retrieval.index import DenseIndex, Progress, build_index, index_settings, open_index
from lm_eval_kinject.retrieval.processes import Processes, devices
from lm_eval_kinject.retrieval.protocol import Retriever, id_ranks
from lm_eval_kinject.retrieval.sparse import BM25
from lm_eval_kinject.retrieval.stores import FLAT, Store, open_store, parse_store

__all__ = [
    "CONTROLS", "DEFAULT_SEED", "RETRIEVERS", "encoder_of", "kind_of", "make_index", "make_retriever",
    "retriever_problems", "trainable", "trainable_problems",
]  # fmt: skip


CONTROLS = ("oracle", "random", "full", "none")
RETRIEVERS = (*KNOWN, "bm25", "hybrid", *CONTROLS)
"""Names that stand for a retriever; any sentence-transformers id or path is one too."""

DEFAULT_SEED = 1234
_HYBRID = "hybrid"
_JOINED = "minilm"  # what `hybrid` alone joins with BM25
_DTYPES = ("float32", "bfloat16")
_BACKENDS = ("torch", "openvino")
_SHOW_PROGRESS_FROM = 1024
_UNFILTERED = {"oracle": "gives the right chunk, whatever its date and source", "none": "finds nothing"}


Kind: TypeAlias = Literal["dense", "bm25", "hybrid", "control", "unknown"]


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a name means: a retriever of ``kind``; for a dense one its rules, if known, and where its weights are.

    A hybrid has those of its dense part, whose name is ``joined``.
    """

    kind: Kind
    spec: EncoderSpec | None = None
    model: str | None = None
    joined: str = ""


def _choose(name: str) -> _Choice:
    if name in KNOWN:
        return _Choice("dense", KNOWN[name])
    if name in CONTROLS:
        return _Choice("control")
    if name == "bm25":
        return _Choice("bm25")
    alias, colon, model = name.partition(":")
    if alias == _HYBRID:
        joined = model if colon else _JOINED
        part = _choose(joined)
        return _Choice("hybrid" if part.kind == "dense" else "unknown", part.spec, part.model, joined)
    if colon and alias in KNOWN and model:
        return _Choice("dense", KNOWN[alias], model)
    if Path(name).expanduser().is_dir():
        return _Choice("dense", None, name)
    for spec in KNOWN.values():
        if name == spec.query_model and name != "package":
            return _Choice("dense", spec)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not Path(name.split("/")[0]).is_dir():
        return _Choice("dense", None, name)
    return _Choice("unknown")


def kind_of(name: str) -> Kind:
    """What sort of retriever a name stands for; loads nothing."""
    return _choose(name).kind


def retriever_problems(
    name: str,
    *,
    dtype: str = "float32",
    backend: str = "torch",
    index: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    store: str = FLAT,
    filter: str | None = None,
) -> list[str]:
    """What is wrong with these arguments of :func:`make_retriever`, a sentence each; loads nothing."""
    choice = _choose(name)
    problems = []
    if choice.joined and choice.kind == "unknown":
        near = difflib.get_close_matches(choice.joined.lower(), KNOWN, n=2, cutoff=0.5)
        guess = f" Did you mean {' or '.join(f'{_HYBRID}:{word}' for word in near)}?" if near else ""
        problems.append(
            f"retriever={name}: {_HYBRID} joins bm25 with a retriever that embeds, and {choice.joined} is none.{guess} "
            f"Use {_HYBRID} (with {_JOINED}), or {_HYBRID}:NAME with one of {', '.join(KNOWN)} or a model's id or "
            f"folder."
        )
    elif choice.kind == "unknown":
        near = difflib.get_close_matches(name.lower(), RETRIEVERS, n=2, cutoff=0.5)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        problems.append(
            f"retriever={name} is unknown.{guess} Use one of {', '.join(RETRIEVERS)}, or a sentence-transformers model "
            f"by its Hub id (owner/name) or the path of its folder."
        )
    if dtype not in _DTYPES:
        problems.append(f"retriever_dtype={dtype} is unknown: use {' or '.join(_DTYPES)}.")
    problems += _backend_problems(name, choice, dtype, backend)
    if choice.kind in {"bm25", "control"}:
        if dtype == "bfloat16":
            problems.append(
                f"retriever_dtype=bfloat16 has no meaning for retriever={name}, which has no model: leave it out."
            )
        if index is not None:
            problems.append(f"index= has no meaning for retriever={name}, which needs none: leave it out.")
        if revision is not None:
            problems.append(f"a revision has no meaning for retriever={name}, which has no model: leave it out.")
    if choice.kind in {"dense", "hybrid"} and revision is not None and _is_local(choice):
        problems.append(
            f"a revision has no meaning for retriever={name}, whose weights are on this machine: leave it out."
        )
    if index is not None and _index_missing(os.fspath(index)):
        problems.append(f"index={os.fspath(index)}: there is no such folder; leave index= out to build one.")
    return problems + _search_problems(name, choice, store, filter)


def _search_problems(name: str, choice: _Choice, store: str, filter: str | None) -> list[str]:
    """What is wrong with ``store=`` and ``filter=``."""
    problems: list[str] = []
    try:
        flat = parse_store(store).flat
        if choice.kind in {"bm25", "control"} and not flat:
            problems.append(f"store= has no meaning for retriever={name}, which has no vectors: leave it out.")
    except ArgumentError as error:
        problems += error.problems
    if filter is not None:
        try:
            parse_filter(filter)
        except ArgumentError as error:
            problems += error.problems
        if name in _UNFILTERED:
            problems.append(f"filter= has no meaning for retriever={name}, which {_UNFILTERED[name]}: leave it out.")
    return problems


def _backend_problems(name: str, choice: _Choice, dtype: str, backend: str) -> list[str]:
    """What is wrong with what is to run the model, and packages that it lacks."""
    if backend not in _BACKENDS:
        return [f"retriever_backend={backend} is unknown: use {' or '.join(_BACKENDS)}."]
    problems = []
    if choice.spec is not None and choice.spec.static:
        given = [f"retriever_dtype={dtype}"] if dtype == "bfloat16" else []
        given += [f"retriever_backend={backend}"] if backend != "torch" else []
        if given:
            problems.append(
                f"{' and '.join(given)} has no meaning for retriever={name}, a table that is looked up: leave it out."
            )
        problems += _lacking(f"retriever={name}", ("model2vec", "skeletoken"), "static")
    elif backend == "openvino":
        if choice.spec is None:
            names = [known for known, spec in KNOWN.items() if not spec.static]
            problems.append(
                f"retriever_backend=openvino has no meaning for retriever={name}: it runs the models whose rules are "
                f"known. Leave it out, or write NAME or NAME:PATH with one of {', '.join(names)}."
            )
        problems += _lacking("retriever_backend=openvino", ("openvino",), "openvino")
    return problems


def _lacking(asked: str, packages: Sequence[str], extra: str) -> list[str]:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if not missing:
        return []
    return [f"{asked} needs {', '.join(missing)}, not installed here: run `pip install 'lm-eval-kinject[{extra}]'`."]


def _is_local(choice: _Choice) -> bool:
    model = choice.model or (choice.spec.query_model if choice.spec else "")
    return model == "package" or Path(model).expanduser().is_dir()


def _index_missing(index: str) -> bool:
    return not Path(index).expanduser().is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", index) is None


def make_retriever(
    name: str,
    corpus: Corpus,
    *,
    dtype: Dtype = "float32",
    backend: Backend = "torch",
    index: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    seed: int = DEFAULT_SEED,
    device: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    store: str = FLAT,
    filter: str | None = None,
) -> Retriever:
    """A retriever over ``corpus``, its model loaded and its index built or opened.

    Args:
        name: one of ``RETRIEVERS``; ``NAME:PATH`` for a known model's rules with weights of your own (a folder or Hub
            id); the Hub id or folder of any sentence-transformers model, which brings its own rules; ``hybrid:NAME``
            for one of these joined with BM25. What follows is for the part that embeds.
        corpus: what is searched.
        dtype: of the encoder's forward pass. ``bfloat16`` is faster where the processor has it (minilm: twice as fast).
        backend: what runs a known model on a processor: ``openvino`` (an extra) is twice as fast as torch in float32,
            and 1.4 times in bfloat16.
        index: a prebuilt index, a folder or Hub dataset ``owner/name[@revision]``; it must match or is refused.
        revision: commit of the model on the Hub; default: the one listed for a known name, else the newest.
        seed: of ``random``.
        device: torch device of the encoder; default: ``cuda`` where there is one, else ``cpu``.
        cache: where indexes are kept; default: ``KINJECT_CACHE`` or ``~/.cache/lm-eval-kinject``.
        progress: called with (passages done, in all) while an index is built; default: a bar on stderr for long ones.
        store: what holds the vectors for searching, with its parameters: ``hnsw;M=32`` (`stores.parse_store`).
        filter: which chunks may be found: ``date<2026-11;source=NAME`` (`filters.parse_filter`).

    Raises:
        ArgumentError: unknown name or contradictory arguments, all at once; a filter that leaves no chunk.
        RetrievalError: the model can't be reached or loaded.
        IndexStoreError: ``index`` is damaged or of another corpus or model; the disk is full.
    """
    problems = retriever_problems(
        name, dtype=dtype, backend=backend, index=index, revision=revision, store=store, filter=filter
    )
    if problems:
        raise ArgumentError(problems, "the retriever's arguments")
    choice = _choose(name)
    allowed = None if filter is None else parse_filter(filter).of(corpus)
    if allowed is not None:
        allowed.say(corpus)
    if choice.kind == "control":
        return Random(corpus, seed, allowed) if name == "random" else _CONTROL_CLASSES[name](corpus, allowed)
    if choice.kind == "bm25":
        return BM25(corpus, allowed=allowed)
    asked, name = name, choice.joined or name
    encoder = load_encoder(
        name, spec=choice.spec, model=choice.model, revision=revision, dtype=dtype, backend=backend, device=device
    )
    if index is not None:
        opened = open_index(_index_folder(os.fspath(index)), index_settings(corpus, encoder))
    else:
        with _bar(corpus, progress, "index") as show:
            opened = build_index(corpus, encoder, cache=cache, progress=show)
    if opened.passages_cut:
        log.warning(
            "retriever=%s reads %s tokens of a chunk: %d of %d chunks of %s are longer and were cut for searching",
            name,
            encoder.settings.get("max_tokens"),
            opened.passages_cut,
            len(corpus),
            corpus.name,
        )
    held = make_store(store, opened, corpus, cache=cache, progress=progress)
    dense = DenseRetriever(name, corpus, encoder, opened, store=held, allowed=allowed)
    return Hybrid(asked, dense, BM25(corpus, allowed=allowed), allowed) if choice.kind == "hybrid" else dense


def encoder_of(name: str, *, device: str | None = None) -> Encoder | None:
    """The encoder of a retriever, alone or in a hybrid, for whoever keeps indexes himself; None: it embeds nothing.

    Raises:
        ArgumentError: unknown name.
        RetrievalError: the model can't be reached or loaded.
    """
    if problems := retriever_problems(name):
        raise ArgumentError(problems, "the retriever's arguments")
    choice = _choose(name)
    if choice.kind not in {"dense", "hybrid"}:
        return None
    return load_encoder(choice.joined or name, spec=choice.spec, model=choice.model, device=device)


def trainable_problems(name: str, revision: str | None = None) -> list[str]:
    """What is wrong with a retriever that is to be trained, a sentence each; loads nothing."""
    problems = retriever_problems(name, revision=revision)
    choice = _choose(name)
    if problems:
        return problems
    if choice.kind != "dense" or (choice.spec is not None and choice.spec.static):
        return [f"retriever={name} has no encoder to be trained: name minilm, or a model's id or folder."]
    if choice.spec is not None and choice.spec.passage_model is not None:
        return [f"retriever={name} is a pair of models, which can't be trained here: name one that reads both sides."]
    return []


def trainable(name: str, revision: str | None = None) -> tuple[Any, dict[str, str]]:
    """A retriever's encoder as a sentence-transformers model with its rules in it, and which weights they are.

    Raises:
        ArgumentError: it can't be trained.
        RetrievalError: the model can't be reached or loaded.
    """
    if problems := trainable_problems(name, revision):
        raise ArgumentError(problems, "the retriever's arguments")
    choice = _choose(name)
    return load_trainable(name, spec=choice.spec, model=choice.model, revision=revision)


def make_index(
    name: str,
    corpus: Corpus,
    *,
    path: str | os.PathLike[str] | None = None,
    dtype: Dtype = "float32",
    backend: Backend = "torch",
    revision: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    processes: int = 1,
) -> DenseIndex:
    """The index that a dense retriever of this name searches, built unless it is there; arguments as `make_retriever`.

    Args:
        path: folder to build in; default: the cache, where `make_retriever` finds it.
        processes: how many embed, each with the encoder loaded and as many threads as this one; with GPUs, one each in
            turn. The bytes are those of one process. A script that asks for several needs the usual
            ``if __name__ == "__main__":``.

    Raises:
        ArgumentError: unknown name or contradictory arguments, or a retriever that has no index.
        RetrievalError: the model can't be reached or loaded.
        IndexStoreError: the disk is full, or ``path`` holds something else.
    """
    problems = list(retriever_problems(name, dtype=dtype, backend=backend, index=None, revision=revision))
    choice = _choose(name)
    if not problems and choice.kind not in {"dense", "hybrid"}:
        problems.append(f"{name} searches without an index on disk; name an encoder, such as minilm")
    if problems:
        raise ArgumentError(problems, "the index's arguments")
    name = choice.joined or name  # a hybrid's index is that of the part that embeds
    load = partial(
        load_encoder, name, spec=choice.spec, model=choice.model, revision=revision, dtype=dtype, backend=backend
    )
    encoder = load(device=device)
    helpers = None
    if processes > 1:
        helpers = Processes(processes, load, devices(encoder.device))
    with _bar(corpus, progress, "index") as show:
        return build_index(corpus, encoder, path=path, progress=show, helpers=helpers)


def make_store(
    store: str,
    index: DenseIndex,
    corpus: Corpus,
    *,
    cache: str | os.PathLike[str] | None = None,
    within: bool = False,
    progress: Progress | None = None,
) -> Store | None:
    """The store of an index, built or opened; None for ``flat``, which is the index.

    Args:
        store: with its parameters, as of `make_retriever`.
        index: whose vectors it holds.
        corpus: that of the index.
        cache: as of `make_retriever`.
        within: build it in the index's own folder and not in the cache.
        progress: called with (distinct vectors done, in all).

    Raises:
        ArgumentError: it is unknown, or its parameters don't fit.
        IndexStoreError: the disk is full.
    """
    spec = parse_store(store)
    if spec.flat:
        return None
    with _bar(corpus, progress, f"store {spec.name}") as show:
        return open_store(spec, index, corpus, id_ranks(corpus), cache=cache, within=within, progress=show)


_CONTROL_CLASSES: dict[str, type[Oracle] | type[Full] | type[NoRetrieval]] = {
    "oracle": Oracle,
    "full": Full,
    "none": NoRetrieval,
}


def _index_folder(index: str) -> Path:
    folder = Path(index).expanduser()
    if folder.is_dir():
        return folder
    repo_id, _, revision = index.partition("@")
    advice = "Leave index= out to build the index here, or give a folder."
    return fetch_snapshot(
        repo_id, kind="dataset", revision=revision or None, error=IndexStoreError, offline_advice=advice
    ).path


@contextmanager
def _bar(corpus: Corpus, progress: Progress | None, what: str) -> Iterator[Progress | None]:
    """The caller's progress callback, or a bar on stderr where the build is long and someone may be watching."""
    if progress is not None or len(corpus) < _SHOW_PROGRESS_FROM:
        yield progress
        return
    from tqdm import tqdm

    bar = tqdm(
        total=len(corpus), desc=f"{what} of {corpus.name}", unit=" chunks", file=sys.stderr, disable=None, leave=False
    )

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield show
