"""``store=qdrant``: vectors in a Qdrant server (``url=``), or in a folder by qdrant-client alone; the extra ``qdrant``.

What it is for: vectors that are kept, filtered and searched by a service of one's own. What it does not do: start one,
or keep texts there; beside its vector a point has the days and sources of its chunks, for filters.

The one idea: a point is a distinct vector, so its payload lists the days and sources of all chunks that share it.
Qdrant takes a list for a match if any of its entries is one, which may be of two different chunks: so it proposes too
much for a filter, never too little, and `stores.py` leaves out what doesn't pass.

Two things to know. A folder is read whole into memory and searched exactly, by one process at a time, and qdrant-client
keeps pickles in it: so one that came from somebody else is never opened (``shareable``). On a server a collection
counts as whole when it has its alias, which is given last::

    kinject-KEY  ->  kinject-KEY-points          KEY: of the store's settings; points: ids 0, 1, …
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lm_eval_kinject.corpus.days import days_of
from lm_eval_kinject.errors import ArgumentError, IndexStoreError
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.retrieval.encoders import Vectors
from lm_eval_kinject.retrieval.exact import Rows
from lm_eval_kinject.retrieval.filters import Condition, Filter, days_of_chunk, source_of
from lm_eval_kinject.retrieval.index import Progress
from lm_eval_kinject.retrieval.proposers import Material, Passing, Proposer, Settings, StoreGone
from lm_eval_kinject.stages import Check, whole

__all__ = ["QdrantKind"]

_KEY = "QDRANT_API_KEY"
_FOLDER = "points"
_LOCAL = "kinject"
_AT_ONCE = 256  # points an upload
_QUESTIONS = 64  # a request
_PATIENCE = 3600  # seconds that a server may take to build its graph
_EF_CONSTRUCT = 100


def _address(name: str, value: Any) -> str:
    """A server's address, without a secret in it."""
    parts = urlsplit(str(value))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ArgumentError(f"{name}={value} is no address of a server: write url=http://localhost:6333, for example")
    if parts.username or parts.password or parts.query:
        raise ArgumentError(f"{name}= must hold no secret, as it is written into results: put the key into {_KEY}")
    return str(value).rstrip("/")


@dataclass(frozen=True)
class QdrantKind:
    """See `proposers.Kind`."""

    name: str = "qdrant"
    shareable: bool = False

    @property
    def parameters(self) -> Mapping[str, Check]:
        """See `proposers.Kind`."""
        return {"M": whole(2, "links"), "ef": whole(1, "vectors"), "url": _address}

    def problems(self, given: Settings) -> list[str]:
        """See `proposers.Kind`."""
        found = []
        if importlib.util.find_spec("qdrant_client") is None:
            found.append(
                "store=qdrant needs qdrant-client, which isn't installed: pip install 'lm-eval-kinject[qdrant]'"
            )
        if "url" not in given and given:
            names = " and ".join(f"{name}=" for name in sorted(given))
            found.append(
                f"store=qdrant: {names} have a meaning for a server alone, as a folder is searched exactly: add url=, "
                f"or leave it out"
            )
        return found

    def settings(self, given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
        """See `proposers.Kind`. ``server`` is a fingerprint of the address, which results don't tell."""
        if "url" not in given:
            return {"server": None}, {}
        build = {"M": given.get("M", 16), "ef_construction": _EF_CONSTRUCT, "server": fingerprint(given["url"])[:16]}
        return build, {"ef": given.get("ef", 128)}

    def build(
        self, material: Material, settings: Settings, given: Settings, folder: Path | None, progress: Progress | None
    ) -> Proposer:
        """See `proposers.Kind`. What a stopped upload left on a server is uploaded anew."""
        from qdrant_client import models

        with _asking(given):
            opened = _connect(given, None if folder is None else folder / _FOLDER)
            name, alias = _names(settings, given)
            if opened.collection_exists(name):
                opened.delete_collection(name)
            graph = models.HnswConfigDiff(m=settings.get("M"), ef_construct=settings.get("ef_construction"))
            size = models.VectorParams(size=material.dimension, distance=models.Distance.DOT)
            opened.create_collection(name, vectors_config=size, hnsw_config=graph)
            if alias is not None:
                for field, sort in (("first", "integer"), ("last", "integer"), ("source", "keyword")):
                    opened.create_payload_index(name, field, field_schema=sort)
            for start, piece in material.pieces():
                _upload(opened, name, material, start, piece)
                if progress is not None:
                    progress(start + len(piece), len(material.distinct))
            if alias is not None:
                _wait_until_ready(opened, name)
                create = models.CreateAlias(collection_name=name, alias_name=alias)
                opened.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
        return _Open(opened, name, given)

    def open(self, folder: Path, settings: Settings, given: Settings, distinct: int) -> Proposer:
        """See `proposers.Kind`."""
        with _asking(given):
            opened = _connect(given, folder / _FOLDER)
            name, alias = _names(settings, given)
            if not opened.collection_exists(name):
                raise StoreGone(f"There is no collection {name}.")
            whole = alias is None or alias in {a.alias_name for a in opened.get_collection_aliases(name).aliases}
            there = opened.count(name, exact=True).count
        if not whole or there != distinct:
            raise StoreGone(
                f"The collection {name} has {there} of {distinct} points{'' if whole else ' and no alias'}."
            )
        return _Open(opened, name, given)


@dataclass(frozen=True, eq=False)
class _Open:
    """A collection."""

    client: Any
    name: str
    given: Settings

    def propose(self, questions: Vectors, count: int, search: Settings, passing: Passing | None) -> Rows:
        """See `proposers.Proposer`."""
        from qdrant_client import models

        how = models.SearchParams(hnsw_ef=search["ef"]) if "ef" in search else None
        only = None if passing is None else _payload_filter(passing.filter)
        found = np.full((len(questions), count), -1, np.int64)
        for start in range(0, len(questions), _QUESTIONS):
            requests = [
                models.QueryRequest(query=question.tolist(), limit=count, params=how, filter=only)
                for question in questions[start : start + _QUESTIONS]
            ]
            with _asking(self.given):
                answers = self.client.query_batch_points(self.name, requests=requests)
            for at, answer in enumerate(answers, start):
                found[at, : len(answer.points)] = [point.id for point in answer.points]
        return found

    def close(self) -> None:
        """See `proposers.Proposer`."""
        for place, client in list(_OPEN.items()):
            if client is self.client:
                del _OPEN[place]
        self.client.close()


def _names(settings: Settings, given: Settings) -> tuple[str, str | None]:
    """The collection, and on a server its alias."""
    alias = f"kinject-{fingerprint(settings)[:16]}"
    return (f"{alias}-points", alias) if "url" in given else (_LOCAL, None)


# Points ---------------------------------------------------------------------------------------------------------------


def _upload(opened: Any, name: str, material: Material, start: int, piece: Vectors) -> None:
    from qdrant_client import models

    for offset in range(0, len(piece), _AT_ONCE):
        some = piece[offset : offset + _AT_ONCE]
        ids = list(range(start + offset, start + offset + len(some)))
        payloads = [_payload(material, id_) for id_ in ids]
        opened.upsert(name, models.Batch(ids=ids, vectors=some.tolist(), payloads=payloads), wait=True)


def _payload(material: Material, id_: int) -> dict[str, Any]:
    """The days (as numbers: 20261125) and the sources of all chunks that have this vector."""
    begin, end = material.distinct.starts[id_ : id_ + 2]
    chunks = [material.corpus.chunks[int(row)] for row in material.distinct.rows[begin:end]]
    days = {found for chunk in chunks if (found := days_of_chunk(chunk)) is not None}
    return {
        "first": sorted({_number(first) for first, _ in days}),
        "last": sorted({_number(last) for _, last in days}),
        "source": sorted({source_of(chunk).casefold() for chunk in chunks}),
    }


def _number(day: str) -> int:
    return int(day.replace("-", ""))


def _payload_filter(chosen: Filter) -> Any:
    """A filter in Qdrant's words; see `filters` for what it means."""
    from qdrant_client import models

    return models.Filter(must=[one for condition in chosen.conditions for one in _conditions(condition)])


def _conditions(condition: Condition) -> Iterator[Any]:
    from qdrant_client import models

    if condition.field == "source":
        names = sorted(condition.names)
        match = models.MatchAny(any=names) if condition.sign == "=" else models.MatchExcept(**{"except": names})
        yield models.FieldCondition(key="source", match=match)
        return
    first, last = (_number(day) for day in days_of(condition.value) or ("0", "0"))
    bounds = {
        "<": [("last", {"lt": first})],
        "<=": [("last", {"lte": last})],
        ">": [("first", {"gt": last})],
        ">=": [("first", {"gte": first})],
        "=": [("first", {"gte": first}), ("last", {"lte": last})],
    }
    for key, bound in bounds[condition.sign]:
        yield models.FieldCondition(key=key, range=models.Range(**bound))


# Clients --------------------------------------------------------------------------------------------------------------

_OPEN: dict[Path, Any] = {}
"""Folders that this process has open: each can be opened once."""


def _connect(given: Settings, folder: Path | None) -> Any:
    """A client: of the server, of the folder, or of memory."""
    from qdrant_client import QdrantClient

    if "url" in given:
        key = os.environ.get(_KEY) or None
        return QdrantClient(url=given["url"], api_key=key, timeout=60, check_compatibility=False)
    if folder is None:
        return QdrantClient(":memory:")
    place = folder.resolve()
    if place not in _OPEN:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Local mode is not recommended")  # docs/score.md says so
                client = QdrantClient(path=str(place), force_disable_check_same_thread=True)
        except RuntimeError as problem:
            raise IndexStoreError(
                f"The store {folder.parent} is open in another process, and a folder of Qdrant's can be open in one "
                f"only: wait for it, or use store=qdrant;url=… with a server, or another store."
            ) from problem
        _OPEN[place] = client
        atexit.register(client.close)  # what is closed when Python's modules are gone complains
    return _OPEN[place]


@contextmanager
def _asking(given: Settings) -> Iterator[None]:
    """Says what to do where a server doesn't answer as it should."""
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except ApiException as problem:
        said = str(problem).strip().splitlines() or [type(problem).__name__]
        raise IndexStoreError(
            f"The Qdrant server {given.get('url')} doesn't answer as it should ({said[0][:160]}): start it, correct "
            f"url=, or put its key into {_KEY}."
        ) from problem


def _wait_until_ready(opened: Any, name: str) -> None:
    """Waits for the graph: what isn't in it yet is searched exactly, and recall would be measured of that."""
    until = time.monotonic() + _PATIENCE
    while (status := str(getattr(opened.get_collection(name).status, "value", ""))) != "green":
        if status == "red" or time.monotonic() > until:
            raise IndexStoreError(f"The Qdrant server couldn't index {name} (status {status}): look into its log.")
        time.sleep(1)
