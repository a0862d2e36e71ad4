"""The chunks of a large corpus, in a file of this process's own that is mapped and not held.

What it is for: a million chunks as Python objects take two gigabytes; here they take what is being looked at. What it
does not do: it is no cache (the file has no name, and is gone with the process), and small corpora never come here.

The one idea: whoever has chunks asks for one by its row or goes through them all, so that a `Chunk` can be made when it
is asked for. The rows lie in Arrow batches of one size, so that a row's batch is a division; and what has been read is
given back to the system, which keeps it at hand as long as nobody needs the memory for more.

    chunks, as they are cut ── `Keeper` ──┬── up to 128 MB by its reckoning: a tuple
                                          └── beyond: `MappedChunks` over  CACHE/(no name)  id text title … meta
"""

from __future__ import annotations

import json
import mmap
import operator
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, overload

from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log
from lm_eval_kinject.plugin import cache_dir
from lm_eval_kinject.provenance import canonical_bytes
from lm_eval_kinject.records import Chunk

__all__ = ["Keeper", "MappedChunks", "row_of"]

LIMIT = 1 << 27
"""Bytes of memory that chunks may take before they go to disk: 50,000 to 90,000 chunks of 180 words."""

_OVERHEAD = 900  # bytes a chunk takes beside its text: the object, its ids, title and meta
_ROWS = 1024  # in a batch


def row_of(chunk: Chunk) -> dict[str, Any]:
    """A chunk as a row of a table, ``meta`` as JSON: a column has one type, meta have many."""
    said = {"id": chunk.id, "text": chunk.text, "title": chunk.title, "document_id": chunk.document_id}
    return {**said, "position": chunk.position, "date": chunk.date, "meta": canonical_bytes(chunk.meta).decode("utf-8")}


def _chunk_of(row: dict[str, Any]) -> Chunk:
    return Chunk(**{**row, "meta": json.loads(row["meta"])})


class Keeper:
    """Keeps chunks that pass: in memory while they are few, in a mapped file once they are many.

    Args:
        name: of the corpus, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: list[Chunk] = []  # all of them, or those of the batch that isn't full
        self._bytes = self._count = 0
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def keeping(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks, each kept as it passes.

        Raises:
            CorpusError: the disk is full.
        """
        for chunk in chunks:
            self._held.append(chunk)
            self._count += 1
            self._bytes += chunk.text.__sizeof__() + _OVERHEAD
            if len(self._held) >= _ROWS and self._bytes > LIMIT:
                self._write()
            yield chunk

    def kept(self) -> tuple[Chunk, ...] | MappedChunks:
        """All that passed, in order.

        Raises:
            CorpusError: the disk is full.
        """
        if self._file is None:
            return tuple(self._held)
        self._write(rest=True)
        self._writer.close()
        self._file.flush()
        return MappedChunks(self._file, self._count)

    def _write(self, *, rest: bool = False) -> None:
        """Writes the full batches of what is held, and with ``rest`` the last one, too."""
        try:
            if self._file is None:
                self._file, self._writer = _started()
            while len(self._held) >= _ROWS or (rest and self._held):
                self._writer.write_batch(_batch(self._held[:_ROWS], self._writer.schema))
                del self._held[:_ROWS]
        except OSError as problem:
            raise CorpusError(
                f"The corpus {self._name} is too large to be held in memory, and can't be put on disk: "
                f"{problem.strerror or problem}. Free some space, or set KINJECT_CACHE to a folder on another disk."
            ) from problem


class _Writer:
    """Arrow's writer with the schema that it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow as pa

        text = pa.large_string()  # a batch may hold more than the 2 GB that the offsets of `string` reach
        names = ("id", "text", "title", "document_id", "position", "date", "meta")
        self.schema = pa.schema([(name, pa.int64() if name == "position" else text) for name in names])
        self._writer = pa.ipc.new_file(file, self.schema)
        self.close = self._writer.close
        self.write_batch = self._writer.write_batch


def _started() -> tuple[IO[bytes], _Writer]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as it is mapped)
    except OSError as problem:
        log.warning("%s can't be written (%s): a large corpus goes to the folder for temporary files", folder, problem)
        file = tempfile.TemporaryFile()  # noqa: SIM115
    return file, _Writer(file)


def _batch(chunks: Sequence[Chunk], schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist([row_of(chunk) for chunk in chunks], schema=schema)


class MappedChunks(Sequence[Chunk]):
    """Chunks in a file, each made when it is asked for: equal ones, not the same one, every time.

    Args:
        file: of Arrow batches with `row_of` each chunk; full ones, but for the last.
        count: how many chunks.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        import pyarrow as pa

        self._file = file  # open, as it is gone once it is closed
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._count = count
        self._read = 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Chunk, ...]: ...

    def __getitem__(self, index: int | slice) -> Chunk | tuple[Chunk, ...]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(self._count)))
        row = operator.index(index)
        if not -self._count <= row < self._count:
            raise IndexError(f"there is no chunk {row} of {self._count}")
        batch, within = divmod(row % self._count, _ROWS)
        self._give_back(1)
        return _chunk_of(self._batches[batch].slice(within, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Chunk]:
        for batch in self._batches:
            self._give_back(len(batch))
            yield from map(_chunk_of, batch.to_pylist())

    def __reversed__(self) -> Iterator[Chunk]:
        return (self[row] for row in reversed(range(self._count)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | MappedChunks):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def ids(self) -> list[str]:
        """The chunks' ids, in order."""
        found = [id_ for batch in self._batches for id_ in batch.column("id").to_pylist()]
        self._give_back(self._count)
        return found

    def _give_back(self, chunks: int) -> None:
        """Counts what is read; from time to time what was read leaves this process's memory."""
        self._read += chunks
        if self._read >= _ROWS and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
