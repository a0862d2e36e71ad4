"""From a selection to a corpus on disk that `corpus=wikipedia:NAME` finds.

What it is for: fetching (or reading a dump), cleaning, cutting and writing, in steps that go on where they stopped.
What it does not do: any of these itself.

The one idea: what a corpus was made of is its list of revisions (``revisions.json``): Wikipedia of another day is
another corpus, and with this list anyone makes the same one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from lm_eval_kinject.corpus.build import Built, build_corpus, opened_corpus
from lm_eval_kinject.corpus.chunk import Chunking
from lm_eval_kinject.corpus.sources.files import Source, read_manifest
from lm_eval_kinject.corpus.sources.wikipedia.api import Api
from lm_eval_kinject.corpus.sources.wikipedia.dump import Dump
from lm_eval_kinject.corpus.sources.wikipedia.fetch import LICENCE, Pages, documents
from lm_eval_kinject.corpus.sources.wikipedia.spec import Selection
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import cache_dir
from lm_eval_kinject.provenance import fingerprint, read_json, write_json
from lm_eval_kinject.records import Document

__all__ = ["SMALLEST", "corpus_folder", "find_built", "make_wikipedia", "read_revisions"]

Revision: TypeAlias = tuple[int, int, str | None]
"""Page id, revision, and the month of the category in which it was found, if any."""

SMALLEST = 15
"""Words; sections of fewer are left-overs of tables and lists."""

_REVISIONS = "revisions.json"


def corpus_folder(name: str) -> Path:
    """Where the corpus of a selection is kept unless a folder is named: below ``KINJECT_CACHE``."""
    return cache_dir() / "corpora" / f"wikipedia-{name}"


def find_built(name: str) -> Path:
    """The folder of a built corpus.

    Raises:
        CorpusError: it hasn't been built.
    """
    folder = corpus_folder(name)
    if read_manifest(folder) is None:
        raise CorpusError(
            f"The corpus wikipedia:{name} hasn't been built on this machine. Where there is a network, run `kinject "
            f"corpus wikipedia {name} --contact YOU@EXAMPLE.ORG` once; or pass corpus= with a file, a folder or a Hub "
            f"dataset."
        )
    return folder


def read_revisions(path: Path) -> list[Revision]:
    """What is in a corpus that was built before: its folder, or its ``revisions.json``."""
    file = path / _REVISIONS if path.is_dir() else path
    try:
        return [(int(page), int(revision), month) for page, revision, month in read_json(file)["pages"]]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CorpusError(f"{file} lists no revisions: give the folder of a corpus made of Wikipedia.") from problem


class _Documents:
    """The sections of all pages, read and cleaned anew with each ``iter``."""

    def __init__(self, pages: Pages | Dump, counts: Counter[str]) -> None:
        self._pages, self._counts = pages, counts

    def __iter__(self) -> Iterator[Document]:
        self._counts.clear()
        yield from documents(self._pages, self._counts)
        self._counts.update(self._pages.counts)


def make_wikipedia(
    name: str,
    selection: Selection | None,
    out: Path,
    origin: Api | Path,
    *,
    chunking: Chunking | None = None,
    revisions: Sequence[Revision] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Built:
    """Makes a corpus of Wikipedia in ``out``, or finds it there; goes on where an earlier run stopped.

    Args:
        name: of the selection.
        selection: which articles; None for all of a dump.
        out: the folder. Remove it to take today's revisions.
        origin: the API, or the file of a dump.
        chunking: how sections are cut; default: sentences, up to 180 words, sections below 15 words dropped.
        revisions: fetch these instead of today's, as `read_revisions` gives them.
        say: takes a line for a person now and then.

    Raises:
        CorpusError: the API, the dump or the disk fails; nothing was found; ``out`` holds another corpus.
        ArgumentError: ``chunking`` can't be used.
    """
    cutting = chunking or Chunking(smallest=SMALLEST)
    wanted = fingerprint(
        [None if selection is None else selection.model_dump(), list(revisions or ()), cutting.provenance()]
    )
    if read_manifest(out) is not None and (out / _REVISIONS).is_file():
        if read_json(out / _REVISIONS).get("selection") != wanted:
            raise CorpusError(
                f"{out} holds a corpus of another selection or cutting: remove it, or give another folder."
            )
        return opened_corpus(out)
    fetched = out.with_name(f"{out.name}.pages")
    if isinstance(origin, Path):
        pages: Pages | Dump = Dump(origin, selection)
    else:
        pages = Pages(origin, _needed(selection), _for(wanted, fetched), revisions=revisions, say=say)
        pages.fetch()
    ids = _revisions(pages)
    counts: Counter[str] = Counter()
    source = Source(
        _Documents(pages, counts),
        f"Wikipedia, {selection.title if selection is not None else 'all articles of a dump'}",
        licence=LICENCE,
        revision=f"revisions {fingerprint(ids)[:16]}",
        counts=counts,
        fingerprint=fingerprint(ids),
    )
    built = build_corpus(name, source, out, chunking=cutting, progress=lambda n: say(f"{n:,} chunks"))
    write_json(out / _REVISIONS, {"selection": wanted, "pages": ids})
    shutil.rmtree(fetched, ignore_errors=True)
    return built


def _needed(selection: Selection | None) -> Selection:
    if selection is None:
        raise CorpusError("All of Wikipedia comes from a dump only: give --dump, or a selection.")
    return selection


def _for(wanted: str, folder: Path) -> Path:
    """The folder of fetched pages; what another selection left there goes."""
    note = folder / "selection.json"
    try:
        same = read_json(note) == wanted
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(note, wanted)
    return folder


def _revisions(pages: Pages | Dump) -> list[Revision]:
    """What is in the corpus, in its order."""
    found: dict[int, Revision] = {}
    for page in pages:
        found.setdefault(page.pageid, (page.pageid, page.revid, page.month))
    if not found:
        raise CorpusError("The dump has no article of this selection: check its names.")
    return list(found.values())
