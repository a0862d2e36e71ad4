"""A corpus: named, fingerprinted chunks, from wherever a user keeps them.

What it is for: :func:`load_corpus` turns one word (a bundled name, a path, a Hub dataset, ``realtimeqa:PATH``) into a
:class:`Corpus` that has been checked: not empty, ids unique, texts present. What it does not do: embed or search.

The one idea: chunks are the unit of everything after this room (hits, gold chunks, indexes), so their ids and texts,
in order, *are* the corpus; its fingerprint is theirs, wherever it was read from. Of a large corpus they lie on disk
(``mapped.py``) and are made when they are asked for.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_kinject.corpus.chunk import CHUNK_WORDS, Chunker, Chunking
from lm_eval_kinject.corpus.mapped import Keeper, MappedChunks
from lm_eval_kinject.corpus.sources.files import SUFFIXES, Source, read_card, read_path
from lm_eval_kinject.corpus.sources.realtimeqa import read_realtimeqa
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.plugin import tasks_dir as installed_tasks
from lm_eval_kinject.provenance import fingerprint_records
from lm_eval_kinject.records import Chunk, Document

__all__ = ["Corpus", "bundled_corpora", "described", "find_source", "load_corpus", "make_corpus"]

_Place = TypeVar("_Place")
_Found = TypeVar("_Found")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_HUB_PATTERNS = (
    "README.md",
    "*.md",
    *(f"*{suffix}" for suffix in (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")),
)


@dataclass(frozen=True)
class Corpus:
    """Chunks under one name.

    Attributes:
        name: short name for people and results; never a path.
        chunks: in corpus order; ids unique, texts not empty. A tuple, or of a large corpus a sequence that makes them.
        fingerprint: SHA-256 of the chunks, in order: what an index must match.
        source: one phrase saying where they come from; path-free.
        revision: of the source, where it has one (a Hub commit, an edition).
        licence: as the source states it.
        chunking: how documents were cut (``method``, ``words``, ``overlap``), or ``{"method": "as given"}``.
        counts: figures of the reading: ``documents``, ``cut`` (documents that were cut), and the source's own.
    """

    name: str
    chunks: Sequence[Chunk]
    fingerprint: str
    source: str
    revision: str | None = None
    licence: str | None = None
    chunking: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chunks)

    @cached_property
    def ids(self) -> Sequence[str]:
        """The chunks' ids, in order."""
        return self.chunks.ids() if isinstance(self.chunks, MappedChunks) else [chunk.id for chunk in self.chunks]

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Each chunk's row, by its id."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    @cached_property
    def by_id(self) -> Mapping[str, Chunk]:
        """Chunks by their ids."""
        return _Looked(self.rows, self.chunks.__getitem__)

    @cached_property
    def by_document(self) -> Mapping[str, tuple[Chunk, ...]]:
        """The chunks of each document in their order there; one that names no document stands under its own id."""
        found: dict[str, list[tuple[int, int]]] = {}
        for row, chunk in enumerate(self.chunks):
            found.setdefault(chunk.document_id or chunk.id, []).append((chunk.position, row))
        ordered = {name: [row for _, row in sorted(places)] for name, places in found.items()}
        return _Looked(ordered, lambda rows: tuple(self.chunks[row] for row in rows))

    def provenance(self) -> dict[str, Any]:
        """What a result says of its corpus: plain and path-free."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "chunks": len(self.chunks),
            "source": self.source,
            "revision": self.revision,
            "licence": self.licence,
            "chunking": dict(self.chunking),
            "counts": dict(self.counts),
        }


class _Looked(Mapping[str, _Found]):
    """What is found at the place of each name, when it is asked for."""

    def __init__(self, places: Mapping[str, _Place], found: Callable[[_Place], _Found]) -> None:
        self._places: Mapping[str, Any] = places
        self._found: Callable[[Any], _Found] = found

    def __getitem__(self, name: str) -> _Found:
        return self._found(self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_corpus(
    spec: str | os.PathLike[str],
    *,
    tasks_dir: str | os.PathLike[str] | None = None,
    words: int = CHUNK_WORDS,
    overlap: int = 0,
    chunking: Chunking | None = None,
) -> Corpus:
    """Loads and checks a corpus.

    Args:
        spec: tried in this order: ``realtimeqa:PATH``; ``wikipedia:NAME``, which `kinject corpus wikipedia` built; the
            name of a bundled corpus (write ``./NAME`` for a folder of that name); an existing file or folder; a Hub
            dataset ``owner/name`` or ``owner/name@revision``.
        tasks_dir: where bundled corpora lie (``NAME/corpus``); default: the installed ones.
        words: documents longer than this are cut (see ``corpus.chunk``); ready chunks never are.
        overlap: words that a chunk repeats of the one before.
        chunking: how documents are cut, in place of the two before: by a tokenizer's tokens, by sections and so on.

    Raises:
        CorpusError: missing (with near names), unreadable, malformed at a line, empty, with duplicate ids or empty
            texts. One message, listing all that is wrong with a file.
        ArgumentError: ``words`` or ``overlap`` out of range.
    """
    name, source = find_source(spec, tasks_dir=tasks_dir)
    return make_corpus(name, source, chunking=chunking or Chunking(words, overlap))


def find_source(spec: str | os.PathLike[str], *, tasks_dir: str | os.PathLike[str] | None = None) -> tuple[str, Source]:
    """A corpus's name and texts, before anything is cut; arguments and errors as of :func:`load_corpus`."""
    text = os.fspath(spec)
    tasks = Path(tasks_dir) if tasks_dir is not None else installed_tasks()
    if not text.strip():
        raise CorpusError(f"No corpus was named. {_advice(tasks)}")
    if text.startswith("realtimeqa:"):
        return "realtimeqa", read_realtimeqa(Path(text.removeprefix("realtimeqa:")).expanduser())
    if text.startswith("wikipedia:"):
        from lm_eval_kinject.corpus.sources.wikipedia import find_built  # it builds corpora, and so needs this module

        named = text.removeprefix("wikipedia:")
        return f"wikipedia-{named}", read_path(find_built(named))
    if text in bundled_corpora(tasks):
        return text, _read_bundled(tasks / text)
    path = Path(text).expanduser()
    if _exists(path):
        return path.resolve().stem if path.is_file() else path.resolve().name, read_path(path)
    if _looks_like_hub_id(text):
        return text.split("@")[0], _read_hub(text)
    raise CorpusError(_not_found(text, path, tasks))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def make_corpus(
    name: str,
    source: Source,
    *,
    words: int = CHUNK_WORDS,
    overlap: int = 0,
    chunking: Chunking | None = None,
) -> Corpus:
    """Cuts a source's documents, checks the chunks and names them; see :func:`load_corpus` for the arguments."""
    chunker = Chunker(chunking or Chunking(words, overlap))
    keeper = Keeper(name)
    empty: list[str] = []
    found = fingerprint_records(keeper.keeping(_cut(source, chunker, empty)))
    made = Corpus(name, keeper.kept(), found, source.description, source.revision, source.licence)
    _check(made, empty)
    if source.built is not None and source.built["fingerprint"] != found:
        raise CorpusError(f"The corpus {name} is not what its manifest.json says, so it was damaged: build it again.")
    how, counts = described(chunker, source)
    return replace(made, chunking=how, counts=counts)


def _cut(source: Source, chunker: Chunker, empty: list[str]) -> Iterator[Chunk]:
    """The chunks of a source; the ids of those without a text go to ``empty``."""
    for item in source.items:
        for chunk in chunker(item) if isinstance(item, Document) else (item,):
            if not chunk.text.strip():
                empty.append(chunk.id)
            yield chunk


def described(chunker: Chunker, source: Source) -> tuple[dict[str, Any], dict[str, int]]:
    """What is said of the cutting, and the figures of the reading, once all of a source has been read."""
    if source.built is not None:
        return dict(source.built["chunking"]), dict(source.built["counts"])
    counts = {key: count for key, count in chunker.counts.items() if count or key != "small"}
    cut = counts["cut"] or "small" in counts
    read = source.reading.counts() if source.reading is not None else {}
    how = chunker.chunking.provenance() if cut else {"method": "as given"}
    return how, {**counts, **read, **(source.counts or {})}


def _check(corpus: Corpus, empty: Sequence[str]) -> None:
    name = corpus.name
    if not corpus.chunks:
        raise CorpusError(f"The corpus {name} is empty: it has no text.")
    if empty:
        raise CorpusError(
            f"The corpus {name} has chunks with empty texts: {_some(empty)}. Give them text or remove them."
        )
    if len(set(corpus.ids)) == len(corpus):
        return
    twice = [chunk_id for chunk_id, count in Counter(corpus.ids).items() if count > 1]
    raise CorpusError(f"The corpus {name} has duplicate ids: {_some(twice)}. Ids must be unique across its files.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more


def bundled_corpora(tasks_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Names that :func:`load_corpus` knows without a path."""
    tasks = Path(tasks_dir) if tasks_dir is not None else installed_tasks()
    return sorted(folder.parent.name for folder in tasks.glob("*/corpus") if folder.is_dir())


def _read_bundled(task: Path) -> Source:
    source = read_path(task / "corpus")
    card = {**read_card(task), **read_card(task / "corpus")}
    licence, revision = card.get("license"), card.get("revision")
    return replace(
        source,
        description=f"bundled corpus of {task.name}",
        licence=None if licence is None else str(licence),
        revision=None if revision is None else str(revision),
    )


def _looks_like_hub_id(text: str) -> bool:
    """Whether a path that doesn't exist can mean owner/name: no known ending, no folder of the owner's name."""
    return (
        _HUB_ID.fullmatch(text) is not None
        and not text.lower().endswith(SUFFIXES)
        and not Path(text.partition("/")[0]).is_dir()
    )


def _read_hub(spec: str) -> Source:
    repo_id, _, revision = spec.partition("@")
    advice = "Without a network give a file, a folder or a bundled corpus instead."
    snapshot = fetch_snapshot(
        repo_id,
        kind="dataset",
        revision=revision or None,
        patterns=_HUB_PATTERNS,
        error=CorpusError,
        offline_advice=advice,
    )
    source = read_path(snapshot.path)
    return replace(source, description=f"Hub dataset {repo_id}", revision=snapshot.commit)


def _not_found(text: str, path: Path, tasks: Path) -> str:
    bundled = bundled_corpora(tasks)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=2, cutoff=0.6)
    close = [str(path.parent / n) if path.parent != Path() else n for n in near]
    close += difflib.get_close_matches(text, bundled, n=2, cutoff=0.6)
    guess = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"There is no corpus {text!r}: neither a bundled name nor an existing path.{guess} {_advice(tasks)}"


def _advice(tasks: Path) -> str:
    names = bundled_corpora(tasks)
    bundled = f"a bundled name ({', '.join(names)}), " if names else ""
    return f"Give {bundled}a file ({', '.join(SUFFIXES)}), a folder of such files, or a Hub dataset owner/name."
