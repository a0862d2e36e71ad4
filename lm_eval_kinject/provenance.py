"""Content fingerprints, atomic writes and the environment a result was made in.

What it is for: whatever this project writes to disk can be named by what it holds, is either whole or absent, and
says with which software it was made. What it does not do: it knows nothing of corpora, indexes or models, and it
records nothing that identifies a person or a machine (no paths, host or user names, no tokens).

The one idea: a value is first written as *canonical* JSON (sorted keys, no spaces, UTF-8), so that equal content
gives equal bytes in every process, and the SHA-256 of those bytes is its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_write",
    "canonical_bytes",
    "environment",
    "fingerprint",
    "fingerprint_file",
    "fingerprint_folder",
    "fingerprint_records",
    "move_into_place",
    "publish_folder",
    "read_json",
    "write_json",
]

_PACKAGES = (
    "lm-eval-kinject",
    "lm-eval",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "sentence-transformers",
    "faiss-cpu",
    "bm25s",
    "numpy",
    "tokenizers",
)


def canonical_bytes(value: Any) -> bytes:
    """The canonical JSON of a plain value, as UTF-8.

    Args:
        value: None, bool, int, finite float, str, and lists, tuples, string-keyed mappings and dataclass instances
            of these. A tuple counts as a list, a dataclass as the mapping of its fields.

    Raises:
        TypeError: for anything else (a set has no order, an arbitrary object no stable bytes).
        ValueError: for NaN and infinities, which JSON has no word for.
    """
    text = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise TypeError(f"only string keys can be fingerprinted, not {wrong[0]!r}")
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise TypeError(f"a {type(value).__name__} can't be fingerprinted; pass plain JSON values or dataclasses")


def fingerprint(value: Any) -> str:
    """SHA-256, in hexadecimal, of the canonical bytes of a plain value."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def fingerprint_records(records: Iterable[Any]) -> str:
    """SHA-256 of a sequence of plain values or dataclasses, in order, without holding all of their bytes at once.

    Each record's length goes in front of it, so that no two different sequences share their bytes.
    """
    digest = hashlib.sha256()
    for record in records:
        data = canonical_bytes(record)
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(handle)


def _digest(handle: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint_folder(path: str | os.PathLike[str], *, skip: Iterable[str] = ()) -> str:
    """SHA-256 of a folder's regular files: their relative paths and their bytes; nothing else of it counts.

    Args:
        path: the folder. Links are followed, as the Hub's cache is made of them.
        skip: file or folder names to leave out, beside hidden ones, ``__pycache__`` and compiled Python.
    """
    root = Path(path)
    left_out = {"__pycache__", *skip}
    entries = {}
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        hidden = any(part.startswith(".") or part in left_out for part in relative.parts)
        if file.is_file() and not hidden and file.suffix != ".pyc":
            entries[relative.as_posix()] = fingerprint_file(file)
    return fingerprint(entries)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    r"""Opens a file that appears at ``path`` whole when the block ends well, and not at all when it doesn't.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), and take the name by a rename, which
    replaces an older file in one step.

    Args:
        path: the final name; its folder must exist.
        mode: ``wb``, or ``w`` for UTF-8 text with ``\n`` line ends.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        kwargs: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **kwargs) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
        _sync_folder(target.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable, where the platform lets a folder be opened (Windows doesn't)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a plain value as indented, key-sorted JSON, atomically."""
    with atomic_write(path, "w") as handle:
        json.dump(_plain(value), handle, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a UTF-8 JSON file; raises OSError or ValueError (which ``json`` and decoding errors both are)."""
    return json.loads(Path(path).read_bytes().decode("utf-8"))


@contextmanager
def publish_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder beside ``target`` that takes its place, whole, when the block ends well.

    Write the manifest as the last file of the block: a folder with a manifest is then complete even where a rename of
    folders isn't atomic. An older folder of that name is replaced; if the block fails it is left as it was.
    """
    final = Path(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part"))
    try:
        yield building
        os.chmod(building, 0o777 & ~_umask())
        move_into_place(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def move_into_place(building: Path, final: Path) -> None:
    """Renames a finished folder to its final name, setting an older one aside first and deleting it afterwards."""
    old: Path | None = None
    if final.exists() or final.is_symlink():
        old = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".old"))
        os.replace(final, old / final.name)
    os.replace(building, final)
    _sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def environment() -> dict[str, Any]:
    """Versions and processor that a result was made with; plain, path-free and fit to publish.

    Returns:
        ``python``, ``platform`` (system, machine), ``cpu`` (model name), ``cpu_count``, ``cpu_capability`` and
        ``threads`` (instructions and threads of torch's kernels, which decide the last bits; None where torch isn't
        loaded), and ``packages`` (name -> version, or None where not installed). Imports none of them.
    """
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability() if torch else None,
        "threads": torch.get_num_threads() if torch else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: what Python knows is all there is
    return platform.processor() or platform.machine()
