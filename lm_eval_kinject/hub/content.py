"""What of a folder may be published, and in what words: no pickles, no local paths, no secrets.

What it is for: `collect` takes a result folder apart into files that go to the Hub and files that stay, and rewrites
the few settings in which libraries note where a model came from; `Content.check` reports everything that forbids
publishing at once. What it does not do: it talks to no Hub (publish.py does) and renders no card (cards.py does).

The one idea: publishing is an allow-list. A file goes because its name says what it is; what nobody knows stays behind
and is listed, and what would be dangerous or embarrassing stops the push.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.client import has_token
from lm_eval_kinject.provenance import fingerprint, fingerprint_file

__all__ = [
    "Content",
    "PICKLED",
    "TOKENIZER",
    "WEIGHTS",
    "collect",
    "fingerprint_model",
    "is_pickle",
    "local_paths",
    "model_files",
    "replace_paths",
    "tensor_shapes",
    "to_json",
]

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
SETTINGS = ("adapter_config.json", "config.json", "generation_config.json")
RECORDS = ("kinject.json", "recipe.yaml", "log.jsonl", "*.png", "README.md", "LICENSE*", "NOTICE*")
ALLOWED = (*WEIGHTS, *TOKENIZER, *SETTINGS, *RECORDS)

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".cloudpickle", ".mar")
"""Endings of files that run code when they are read."""

_LEFTOVERS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "trainer_state.json")
"""What transformers.Trainer writes beside the weights for itself; left behind without a word of blame."""

_CODE_FREE = (".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md", ".txt", ".jinja")
_NO_PATHS_IN = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # "/usr" is a word there, not a place

# A place on somebody's disk, not part of a web address or of a longer word: an absolute path below a usual root, a path
# of Windows (with a drive, or a share of a server), or any absolute path that exists here.
_ROOTS = "|".join(
    "home Users root tmp var private mnt media data work workspace scratch opt srv export nfs content gpfs".split()
)
_START = r"(?<![\w/.~-])"
_REST = r"[^\s\"'`<>|)\]},;]+"
_NAME = r"[\w.$~-]+"
_WINDOWS = (
    rf"(?<!\w)[A-Za-z]:(?:\\{{1,2}}\w[^\s\"']*|/{_NAME}/{_REST})"
    rf"|(?<![\w\\])(?:\\\\{_NAME}\\{_NAME}\\|\\\\\\\\{_NAME}\\\\{_NAME}\\\\)[^\s\"']+"
)
_PATH = re.compile(rf"{_START}(?:file://)?(?:/(?:{_ROOTS})/{_REST}|~/{_REST})|{_WINDOWS}")
_ABSOLUTE = re.compile(rf"{_START}(?:file://)?(?P<path>/[^\s\"'`<>|)\]}},;/]+/{_REST})")
_EVERYWHERE = ("/dev/", "/proc/", "/sys/", "/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/etc/")
"""Below these a name means the same on every machine, and questions ask about it."""


@dataclass(frozen=True)
class Content:
    """What goes to the Hub.

    Attributes:
        files: path in the repository -> the file on this disk, or its bytes where they were rewritten.
        left_out: relative names of what stays behind.
    """

    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...] = ()

    def with_files(self, more: Mapping[str, Path | bytes]) -> Content:
        """The same with some files added or replaced."""
        return Content({**self.files, **more}, self.left_out)

    def size(self, path: str) -> int:
        """Bytes of a file."""
        source = self.files[path]
        return len(source) if isinstance(source, bytes) else source.stat().st_size

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        source = self.files[path]
        return source if isinstance(source, bytes) else source.read_bytes()

    def sha256(self, path: str) -> str:
        """Digest of a file's bytes."""
        source = self.files[path]
        return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else fingerprint_file(source)

    def check(self, allowed: Iterable[str] = ()) -> None:
        """Makes sure that nothing in it forbids publishing.

        Args:
            allowed: texts that look like local paths and may stay.

        Raises:
            PublishError: listing all that does.
        """
        problems = [p for path in sorted(self.files) for p in _problems(path, self.files[path], set(allowed))]
        if problems:
            raise PublishError(_listed("This can't be published", problems))


def _listed(headline: str, problems: Sequence[str]) -> str:
    return "\n".join([f"{headline}; nothing was sent:", *(f"  - {problem}" for problem in problems)])


# Choosing -------------------------------------------------------------------------------------------------------------


@dataclass
class _Sorting:
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(
    folder: str | os.PathLike[str],
    *,
    allowed: Sequence[str] = ALLOWED,
    places: Mapping[str, str] | None = None,
) -> Content:
    """Chooses what of a folder goes to the Hub.

    Args:
        folder: a result of the trainer, a model, or an adapter.
        allowed: patterns of names that go; anything else stays.
        places: what a local path is called on the Hub (``/…/reader`` -> ``me/reader``); put into the JSON files that
            name it.

    Raises:
        PublishError: the folder isn't there, has weights that are pickled, or a link that leads out of it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise PublishError(f"There is no folder {root}: give the folder of a finished run.")
    found = _Sorting()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        _sort(root, file, allowed, places or {}, found)
    if found.problems:
        raise PublishError(_listed("This folder can't be published", found.problems))
    if not found.files:
        raise PublishError(f"The folder {root.name} holds nothing to publish: is it the folder of a finished run?")
    return Content(found.files, tuple(found.left_out))


def _sort(root: Path, file: Path, allowed: Sequence[str], places: Mapping[str, str], found: _Sorting) -> None:
    name = file.relative_to(root).as_posix()
    if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()) and not _in_hub_cache(file):
        found.problems.append(f"{name} is a link that leads out of the folder: replace it by the file itself")
    elif _matches_in_place(name, allowed):
        rewritten = _rewritten(file, name, places)
        found.files[name] = file if rewritten is None else rewritten
    elif file.suffix.lower() in PICKLED and "/" not in name and not _matches(name, _LEFTOVERS):
        found.problems.append(
            f"{name} is pickled: whoever loads it runs its code. Save the weights with "
            "`model.save_pretrained(folder)` (safetensors), then remove it"
        )
    else:
        found.left_out.append(name)


def _in_hub_cache(file: Path) -> bool:
    """Snapshots of the Hub's cache are links to ``blobs`` beside them."""
    return file.resolve().parent.name == "blobs"


def _matches_in_place(name: str, patterns: Iterable[str]) -> bool:
    """As `_matches`, but a star stands for no slash."""
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _rewritten(file: Path, name: str, places: Mapping[str, str]) -> bytes | None:
    """The bytes of a settings file in which local paths got their Hub names; None where nothing changes."""
    if not places or not name.endswith(".json") or name in _NO_PATHS_IN:
        return None
    try:
        old = json.loads(file.read_bytes())
    except ValueError:
        return None  # `Content.check` reports it
    new = replace_paths(old, places)
    return None if new == old else to_json(new)


def replace_paths(value: Any, places: Mapping[str, str]) -> Any:
    """A plain value in which every string that is one of the given paths is replaced by its name on the Hub."""
    if isinstance(value, str):
        for path, name in places.items():
            if value.rstrip("/") == path.rstrip("/") or _same_place(value, path):
                return name
        return value
    if isinstance(value, Mapping):
        return {key: replace_paths(inner, places) for key, inner in value.items()}
    return [replace_paths(inner, places) for inner in value] if isinstance(value, list) else value


def _same_place(one: str, other: str) -> bool:
    if not one.startswith(("/", "~", ".")) and os.sep not in one:
        return False
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def to_json(value: Any) -> bytes:
    """JSON as all of our published files have it: keys sorted, indented by two."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# Naming ---------------------------------------------------------------------------------------------------------------


def fingerprint_model(folder: str | os.PathLike[str]) -> str:
    """Names a model's folder by what is published of it and decides what it computes.

    That is weights, settings and tokenizer: a card that was edited or a file that stays behind makes no other model.
    """
    root = Path(folder)
    names = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    return fingerprint({name: fingerprint_file(root / name) for name in model_files(names)})


def model_files(names: Iterable[str]) -> list[str]:
    """Which of a model's files `fingerprint_model` looks at; pickled weights only where there are no others."""
    listed = sorted(names)
    found = [name for name in listed if _matches_in_place(name, (*WEIGHTS, *SETTINGS, *TOKENIZER))]
    if any(name.endswith(".safetensors") for name in found):
        return found
    return sorted([*found, *(name for name in listed if "/" not in name and name.endswith(PICKLED))])


# Checking -------------------------------------------------------------------------------------------------------------


def _problems(name: str, source: Path | bytes, allowed: set[str]) -> list[str]:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(part in ("", ".", "..", ".git") for part in parts):
        return [f"{name!r} is no path inside a repository"]
    if name.endswith(".safetensors"):
        return _safetensors_problems(name, source)
    if is_pickle(source) or Path(name).suffix.lower() in PICKLED:
        return [f"{name} is pickled: whoever loads it runs its code; use safetensors"]
    if not name.endswith(_CODE_FREE) and Path(name).suffix:
        return []
    data = source if isinstance(source, bytes) else source.read_bytes()
    return _text_problems(name, data.decode("utf-8", errors="replace"), allowed)


def _text_problems(name: str, text: str, allowed: set[str]) -> list[str]:
    problems = []
    if has_token(text):
        line = next((n for n, row in enumerate(text.splitlines(), 1) if has_token(row)), 1)
        problems.append(f"{name}, line {line}: holds an access token; remove it, and revoke the token")
    if name not in _NO_PATHS_IN:
        found = [path for path in local_paths(_plain_text(name, text)) if path not in allowed]
        problems += [
            f"{name}: names the local path {path}: push that first and say what it is called on the Hub"
            for path in dict.fromkeys(found)
        ]
    return problems


def local_paths(text: str) -> list[str]:
    """Places on this or some other disk that a text names, in order."""
    here = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
    found = [match.group(0) for match in _PATH.finditer(text)]
    for place in sorted(here):
        found += re.findall(rf"{_START}{re.escape(place)}/{_REST}", text)
    found += [match.group(0) for match in _ABSOLUTE.finditer(text) if _is_here(match["path"])]
    return list(dict.fromkeys(path.rstrip(_PUNCTUATION) for path in found))


_PUNCTUATION = ".:!?"


def _is_here(path: str) -> bool:
    return not path.startswith(_EVERYWHERE) and os.path.exists(path.rstrip(_PUNCTUATION))


def _plain_text(name: str, text: str) -> str:
    """A file's text; of JSON the texts in it: an escaped line break is no part of a Windows path."""
    try:
        if name.endswith(".json"):
            return "\n".join(_strings(json.loads(text)))
        if name.endswith(".jsonl"):
            return "\n".join(one for line in text.splitlines() if line.strip() for one in _strings(json.loads(line)))
    except ValueError:
        pass  # not JSON, whatever its name says: looked through as it is
    return text


def _strings(value: Any) -> Iterator[str]:
    """All texts in plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def is_pickle(source: Path | bytes) -> bool:
    """Whether the first bytes are those of a pickle, or of a zip archive that holds one (``torch.save``)."""
    head = source[:4096] if isinstance(source, bytes) else _head(source)
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    return head.startswith(b"PK\x03\x04") and b"data.pkl" in head


def _head(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(4096)


def _safetensors_problems(name: str, source: Path | bytes) -> list[str]:
    try:
        tensor_shapes(source)
    except PublishError as problem:
        return [f"{name}: {problem}"]
    return []


def tensor_shapes(source: Path | bytes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, without reading the tensors.

    Raises:
        PublishError: it isn't a safetensors file, whatever its name says, or a part of one.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        header = _header(source, size)
        shapes = {key: tuple(int(n) for n in one["shape"]) for key, one in header.items() if key != "__metadata__"}
        ends = [int(one["data_offsets"][1]) for key, one in header.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise PublishError("it is no safetensors file, whatever its name says") from problem
    length = int.from_bytes(_first(source, 0, 8), "little")
    if 8 + length + max(ends, default=0) != size:
        raise PublishError("it is incomplete: its header promises more or less than it holds")
    return shapes


def _header(source: Path | bytes, size: int) -> dict[str, Any]:
    length = int.from_bytes(_first(source, 0, 8), "little")
    if not 2 <= length <= min(size - 8, 100 << 20):
        raise ValueError("no header")
    header = json.loads(_first(source, 8, length))
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header


def _first(source: Path | bytes, start: int, length: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + length]
    with source.open("rb") as handle:
        handle.seek(start)
        return handle.read(length)
