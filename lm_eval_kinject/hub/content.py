"""What of a folder may be published, and in what words: no pickles, no local paths, no secrets.

What it is for: `collect` takes a folder apart into files that go to the Hub and files that stay, and `Content.check`
reports everything that forbids publishing at once. What it does not do: it talks to no Hub (publish.py does) and
renders no card (cards.py does).

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.client import has_token, listed
from lm_eval_kinject.provenance import fingerprint, fingerprint_file

__all__ = [
    "Content", "ALLOWED", "PICKLED", "TOKENIZER", "USED", "WEIGHTS", "collect", "fingerprint_model", "is_pickle",
    "local_paths", "matches", "model_files", "replace_paths", "tensor_problems", "tensor_shapes", "texts", "to_json",
]  # fmt: skip

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
SETTINGS = ("adapter_config.json", "config.json", "generation_config.json")
ENCODER = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*/config.json",
)  # fmt: skip
"""Of sentence-transformers, around the transformer: which modules follow each other, and how each is set."""

USED = (*WEIGHTS, *SETTINGS, *TOKENIZER, *ENCODER)
RECORDS = ("kinject.json", "recipe.yaml", "log.jsonl", "*.png", "README.md", "LICENSE*", "NOTICE*")
ALLOWED = (*USED, *RECORDS)

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".cloudpickle", ".mar")
"""Endings of files that run code when they are read."""

_LEFTOVERS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "trainer_state.json")
"""What transformers.Trainer writes beside the weights for itself; left behind without a word of blame."""

_TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md", ".txt", ".jinja", ".py")
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
_PUNCTUATION = ".:!?"
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

    def check(self) -> None:
        """Makes sure that nothing in it forbids publishing.

        Raises:
            PublishError: listing all that does.
        """
        problems = [problem for path in sorted(self.files) for problem in _problems(path, self.files[path])]
        if problems:
            raise PublishError(listed("This can't be published; nothing was sent:", problems))


# Choosing -------------------------------------------------------------------------------------------------------------


def collect(folder: str | os.PathLike[str], *, allowed: Sequence[str] = ALLOWED) -> Content:
    """Chooses what of a folder goes to the Hub.

    Args:
        folder: a result of the trainer, a model, or an adapter.
        allowed: patterns of names that go; anything else stays.

    Raises:
        PublishError: the folder isn't there, has weights that are pickled, or a link that leads out of it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise PublishError(f"There is no folder {root}: give the folder of a finished run.")
    files: dict[str, Path | bytes] = {}
    left_out, problems = [], []
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        name, target = file.relative_to(root).as_posix(), file.resolve()
        # Snapshots of the Hub's cache are links to `blobs` beside them.
        if file.is_symlink() and not target.is_relative_to(root.resolve()) and target.parent.name != "blobs":
            problems.append(f"{name} is a link that leads out of the folder: replace it by the file itself")
        elif matches(name, allowed):
            files[name] = file
        elif file.suffix.lower() in PICKLED and "/" not in name and not matches(name, _LEFTOVERS):
            problems.append(
                f"{name} is pickled: whoever loads it runs its code. Save the weights with "
                "`model.save_pretrained(folder)` (safetensors), then remove it"
            )
        else:
            left_out.append(name)
    if problems:
        raise PublishError(listed("This folder can't be published; nothing was sent:", problems))
    if not files:
        raise PublishError(f"The folder {root.name} holds nothing to publish: is it the folder of a finished run?")
    return Content(files, tuple(left_out))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name is one of some patterns, in which a star stands for no slash."""
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def replace_paths(value: Any, places: Mapping[str, str]) -> Any:
    """A plain value in which every string that is one of the given paths is replaced by its name on the Hub."""
    if isinstance(value, str):
        return next((name for path, name in places.items() if _same_place(value, path)), value)
    if isinstance(value, Mapping):
        return {key: replace_paths(inner, places) for key, inner in value.items()}
    return [replace_paths(inner, places) for inner in value] if isinstance(value, list) else value


def _same_place(one: str, other: str) -> bool:
    if one.rstrip("/") == other.rstrip("/"):
        return True
    is_path = one.startswith(("/", "~", ".")) or os.sep in one
    return is_path and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


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
    ordered = sorted(names)
    found = [name for name in ordered if matches(name, USED)]
    if any(name.endswith(".safetensors") for name in found):
        return found
    return sorted([*found, *(name for name in ordered if "/" not in name and name.endswith(PICKLED))])


# Checking -------------------------------------------------------------------------------------------------------------


def _problems(name: str, source: Path | bytes) -> list[str]:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(part in ("", ".", "..", ".git") for part in parts):
        return [f"{name!r} is no path inside a repository"]
    if name.endswith(".safetensors"):
        return tensor_problems(name, source)
    if is_pickle(source) or Path(name).suffix.lower() in PICKLED:
        return [f"{name} is pickled: whoever loads it runs its code; use safetensors"]
    if not name.endswith(_TEXTS) and Path(name).suffix:
        return []
    text = (source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8", errors="replace")
    problems = []
    if has_token(text):
        line = next((n for n, row in enumerate(text.splitlines(), 1) if has_token(row)), 1)
        problems.append(f"{name}, line {line}: holds an access token; remove it, and revoke the token")
    if name not in _NO_PATHS_IN:
        problems += [
            f"{name}: names the local path {path}: push that first and say what it is called on the Hub"
            for path in local_paths(_plain_text(name, text))
        ]
    return problems


def local_paths(text: str) -> list[str]:
    """Places on this or some other disk that a text names, in order."""
    here = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
    found = [match.group(0) for match in _PATH.finditer(text)]
    for place in sorted(here):
        found += re.findall(rf"{_START}{re.escape(place)}/{_REST}", text)
    for match in _ABSOLUTE.finditer(text):
        if not match["path"].startswith(_EVERYWHERE) and os.path.exists(match["path"].rstrip(_PUNCTUATION)):
            found.append(match.group(0))
    return list(dict.fromkeys(path.rstrip(_PUNCTUATION) for path in found))


def _plain_text(name: str, text: str) -> str:
    """A file's text; of JSON the texts in it: an escaped line break is no part of a Windows path."""
    lines = [text] if name.endswith(".json") else text.splitlines() if name.endswith(".jsonl") else []
    try:
        if lines:
            return "\n".join(one for line in lines if line.strip() for _, one in texts(json.loads(line)))
    except ValueError:
        pass  # not JSON, whatever its name says: looked through as it is
    return text


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """All texts in plain data, keys included, with the names of the keys that lead there: ``config.model_args``."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, str(key)
            yield from texts(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, where)


def is_pickle(source: Path | bytes) -> bool:
    """Whether the first bytes are those of a pickle, or of a zip archive that holds one (``torch.save``)."""
    if isinstance(source, bytes):
        head = source[:4096]
    else:
        with source.open("rb") as handle:
            head = handle.read(4096)
    return re.match(rb"\x80[\x02-\x05]", head) is not None or (head.startswith(b"PK\x03\x04") and b"data.pkl" in head)


def tensor_problems(name: str, source: Path | bytes) -> list[str]:
    """Why a file that calls itself safetensors isn't; empty where it is."""
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
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    try:
        if isinstance(source, bytes):
            return {key: tuple(tensor.shape) for key, tensor in load(source).items()}
        with safe_open(source, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as problem:
        if "incomplete" in str(problem):
            raise PublishError("it is incomplete: its header promises more or less than it holds") from problem
        raise PublishError("it is no safetensors file, whatever its name says") from problem
