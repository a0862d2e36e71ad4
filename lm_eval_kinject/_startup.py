"""The start-up hook: how lm-eval 0.4.13, which has no plugin discovery, finds this package.

Installed as the top-level module `_lm_eval_kinject_startup`, which `lm_eval_kinject.pth` imports whenever Python
starts in that environment. So it imports nothing that the interpreter hasn't loaded already, and does one thing: put
a finder on `sys.meta_path` that waits for `lm_eval.models` and `lm_eval.tasks`. When lm_eval itself is imported, and
never otherwise, `lm_eval_kinject.plugin` is told, and adds our model type or our tasks folder.

It doesn't import this package at start-up, doesn't touch lm_eval's files, and leaves no trace on the modules that it
has watched: they keep their own loader. `LM_EVAL_KINJECT_DISABLE=1` in the environment switches it off.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own constant would cost an import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WATCHED = ("lm_eval.models", "lm_eval.tasks")


class _TellAfterwards:
    """Stands in for a module's loader while it is loaded, then tells the plugin that the module is there."""

    def __init__(self, loader: "Loader") -> None:
        self.loader = loader

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self.loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _tell(module.__name__)


class StartupHook:
    """Finder that finds nothing by itself: it hands on what the other finders find for the watched modules."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Ask the other finders for a watched module, and arrange to be called once it has been loaded."""
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _TellAfterwards(spec.loader)  # type: ignore[arg-type, assignment]
                return spec
        return None


def _tell(name: str) -> None:
    """Call the plugin; whatever goes wrong with it must not keep lm_eval from running."""
    try:
        from lm_eval_kinject import plugin
    except Exception as error:
        if getattr(error, "name", None) != "lm_eval_kinject":  # else it has been uninstalled, and this file was left
            import warnings

            warnings.warn(f"lm-eval-kinject can't add rag-hf and its tasks: {error!r}", RuntimeWarning, stacklevel=2)
    else:
        plugin.on_import(name)


def install() -> None:
    """Put the hook in place, once, unless the environment says not to."""
    if os.environ.get("LM_EVAL_KINJECT_DISABLE", "0") not in ("", "0"):
        return
    if not any(type(finder).__name__ == "StartupHook" for finder in sys.meta_path):
        sys.meta_path.insert(0, StartupHook())
