"""How lm_eval finds us: it adds our model types (`rag-hf` and others) and the folder of our tasks to a running lm_eval.

There are three ways in, and all end in this module or need nothing from it:

- **entry point**: releases after lm-eval 0.4.13 read the group `lm_eval.models` by themselves (models only);
- **start-up hook**: `_startup.py`, for 0.4.13 and for the tasks, calls `on_import` when lm_eval is imported;
- **module**: `python -m lm_eval_kinject …`, or a script, calls `register` itself and needs neither.

Nothing heavy is imported here, and a model's code only when lm_eval asks for its type: what goes wrong then is
what the user sees. It doesn't change lm_eval's own models and tasks, and adding twice is adding once.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lm_eval_kinject.log import log

DISTRIBUTION = "lm-eval-kinject"
DISABLE_VARIABLE = "LM_EVAL_KINJECT_DISABLE"
ENTRY_POINT_GROUP = "lm_eval.models"
MODELS = {
    "rag-hf": "lm_eval_kinject.models.rag_hf:RagHFLM",
    "rag-local-completions": "lm_eval_kinject.models.rag_api:RagLocalCompletionsLM",
    "rag-local-chat-completions": "lm_eval_kinject.models.rag_api:RagLocalChatCompletionsLM",
    "rag-openai-completions": "lm_eval_kinject.models.rag_api:RagOpenAICompletionsLM",
    "rag-openai-chat-completions": "lm_eval_kinject.models.rag_api:RagOpenAIChatCompletionsLM",
    "rag-vllm": "lm_eval_kinject.models.rag_vllm:RagVLLM",
    "rag-sglang": "lm_eval_kinject.models.rag_sglang:RagSGLangLM",
}
"""Name of each model type in lm_eval, and where its class is."""

LAST_WITHOUT_ENTRY_POINTS = (0, 4, 13)
"""The last lm-eval release that doesn't read entry points."""

_PATCHED = "_kinject_adds_tasks"

Way = Literal["entry point", "start-up hook", "module", "off"]


# Where our data is ----------------------------------------------------------------------------------------------------


def _data_dir(name: str) -> Path:
    """A top-level folder of the project: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    is_checkout = (package.parent / "build_backend.py").is_file()
    return package.parent / name if is_checkout else package / "_data" / name


def tasks_dir() -> Path:
    """The folder of our lm_eval tasks; of the checkout if that is what is installed."""
    return _data_dir("tasks")


def adapters_dir() -> Path:
    """The folder with one YAML record per published adapter, and the card template."""
    return _data_dir("adapters")


def assets_dir() -> Path:
    """The folder with the weights and files that the package carries, such as the embedded reader."""
    return Path(__file__).resolve().parent / "assets"


def cache_dir() -> Path:
    """Where indexes, corpora and adapters are kept: ``KINJECT_CACHE``, or ``~/.cache/lm-eval-kinject``."""
    named = os.environ.get("KINJECT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lm-eval-kinject"


# Adding ourselves -----------------------------------------------------------------------------------------------------


def register() -> None:
    """Make lm_eval know our models and tasks, whether or not the start-up hook or entry points are in force.

    Raises:
        ModuleNotFoundError: lm_eval isn't installed.
    """
    import lm_eval.models
    import lm_eval.tasks  # noqa: F401

    for name in ("lm_eval.models", "lm_eval.tasks"):
        on_import(name)


def on_import(name: str) -> None:
    """Add ourselves to a module of lm_eval that has just been imported.

    Trouble is logged and not raised: somebody who runs lm_eval without us must be able to go on.

    Args:
        name: `lm_eval.models` or `lm_eval.tasks`.
    """
    try:
        if name == "lm_eval.models":
            _add_models()
        elif name == "lm_eval.tasks":
            _add_tasks(sys.modules[name].TaskManager)
    except Exception as error:
        log.warning(
            "%s can't be added to %s of this lm_eval (%r). Run `kinject doctor`, or set %s=1 to leave it out.",
            DISTRIBUTION,
            name,
            error,
            DISABLE_VARIABLE,
        )


def _add_models() -> None:
    """Register each of our models under its name as a lazy placeholder, unless lm_eval has the name already."""
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=_placeholder(name, target))


def _placeholder(name: str, target: str) -> str | metadata.EntryPoint:
    """What stands in the registry until the model is asked for.

    Where lm_eval reads entry points, possibly after us, it is the very entry point that it will find: registering the
    same target twice is allowed, two different ones are an error.
    """
    if _reads_entry_points(_version_of("lm_eval")):
        return metadata.EntryPoint(name=name, value=target, group=ENTRY_POINT_GROUP)
    return target


def _add_tasks(task_manager: Any) -> None:
    """Make every `TaskManager` look through our folder too: after lm_eval's own tasks, before the user's.

    A task of the user's `--include_path` thus overrides one of ours that has its name, as it overrides lm_eval's.
    `include_defaults=False` leaves ours out with lm_eval's own.
    """
    original: Callable[..., None] = task_manager.__init__
    if getattr(original, _PATCHED, False):
        return
    signature = inspect.signature(original)
    if "include_path" not in signature.parameters:
        raise TypeError("its TaskManager takes no include_path")

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        given = call.arguments.get("include_path")
        if call.arguments.get("include_defaults", True):
            call.arguments["include_path"] = _with_ours(given)
        original(*call.args, **call.kwargs)
        # What the caller asked for, for whoever reads it back.
        args[0].include_path = given

    setattr(init, _PATCHED, True)
    task_manager.__init__ = init


def _with_ours(given: str | Path | Iterable[str | Path] | None) -> list[str | Path]:
    """Our tasks folder and then the given ones; ours isn't repeated if it is among them."""
    theirs = [given] if isinstance(given, (str, Path)) else list(given or ())
    ours = tasks_dir()
    if any(Path(path).resolve() == ours for path in theirs):
        return theirs
    return [ours, *theirs]


# Saying how we were found ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiscoveryState:
    """How lm_eval finds us in this environment; made for `kinject doctor`.

    Attributes:
        models: the way in which the `lm_eval` command learns of `rag-hf`.
        tasks: the way in which it learns of our tasks.
        hook_installed: whether this process was started with the start-up hook.
        disabled: whether the environment variable switches the hook off.
        entry_point_declared: whether the installed distribution declares `rag-hf` as an entry point.
        lm_eval_version: of the lm_eval at hand; None if there is none.
        tasks_folder: where our tasks are read from.
        problems: one sentence for each thing that is wrong, ending with what to do; empty if all is well.
    """

    models: Way
    tasks: Way
    hook_installed: bool
    disabled: bool
    entry_point_declared: bool
    lm_eval_version: str | None
    tasks_folder: Path
    problems: tuple[str, ...]


def discovery_state() -> DiscoveryState:
    """Find out how lm_eval finds us, without importing lm_eval."""
    hook = any(type(finder).__name__ == "StartupHook" for finder in sys.meta_path)
    disabled = os.environ.get(DISABLE_VARIABLE, "0") not in ("", "0")
    version = _version_of("lm_eval")
    declared = _declares_entry_point()
    patched = getattr(sys.modules.get("lm_eval.tasks"), "TaskManager", None)
    by_hand = getattr(getattr(patched, "__init__", None), _PATCHED, False)

    tasks: Way = "start-up hook" if hook else "module" if by_hand else "off"
    models: Way = "entry point" if declared and _reads_entry_points(version) else tasks
    return DiscoveryState(
        models=models,
        tasks=tasks,
        hook_installed=hook,
        disabled=disabled,
        entry_point_declared=declared,
        lm_eval_version=version,
        tasks_folder=tasks_dir(),
        problems=tuple(_problems(tasks, disabled, version)),
    )


def is_added() -> tuple[bool, bool]:
    """Whether the lm_eval of this process knows our models and our tasks: what `discovery_state` only expects.

    Imports lm_eval.
    """
    import lm_eval.models
    import lm_eval.tasks
    from lm_eval.api.registry import model_registry

    return MODELS.keys() <= set(model_registry), getattr(lm_eval.tasks.TaskManager.__init__, _PATCHED, False)


def _problems(tasks: Way, disabled: bool, version: str | None) -> Iterable[str]:
    """What is wrong with the discovery, and what to do about it."""
    if version is None:
        yield "lm_eval is not installed: run `pip install lm-eval`."
    elif _release(version) < LAST_WITHOUT_ENTRY_POINTS:
        yield f"lm_eval {version} is older than 0.4.13: run `pip install -U 'lm-eval>=0.4.13'`."
    if not tasks_dir().is_dir():
        yield f"The tasks folder {tasks_dir()} is missing: reinstall {DISTRIBUTION}."
    if tasks == "off":
        why = (
            f"{DISABLE_VARIABLE} is set: unset it"
            if disabled
            else f"Python did not read lm_eval_kinject.pth: reinstall {DISTRIBUTION} with pip"
        )
        yield f"The lm_eval command doesn't know our tasks. {why}, or write `python -m lm_eval_kinject` for `lm_eval`."


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _declares_entry_point() -> bool:
    try:
        found = metadata.distribution(DISTRIBUTION).entry_points
    except metadata.PackageNotFoundError:
        return False
    return any(point.group == ENTRY_POINT_GROUP and point.name in MODELS for point in found)


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: `0.4.14rc1` gives (0, 4, 14)."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _reads_entry_points(version: str | None) -> bool:
    return version is not None and _release(version) > LAST_WITHOUT_ENTRY_POINTS
