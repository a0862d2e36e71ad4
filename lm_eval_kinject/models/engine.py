"""What is known of a model type before anything is loaded: its arguments, and what it can't do.

What it is for: an `Engine` tells `arguments.split` which names a host class takes beside its own parameters, what is
wrong with their values, and which of our arguments mean nothing to it, so that all of it is said in the first second.
What it does not do: it runs nothing; what only a server can say (whether it gives log-probabilities) its host asks.

The one idea: a host class that takes ``**kwargs`` hands misspelt names on or drops them without a word, so the names
that it takes are collected from all its bases, and whatever is beyond them is named here.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Engine", "missing_packages", "parameters_of"]

Given = Mapping[str, Any]


def _none(*given: Given) -> list[str]:
    return []


@dataclass(frozen=True)
class Engine:
    """A model type's own arguments and limits.

    Attributes:
        type: the model type's name.
        problems: what is wrong with (the host class's own arguments, ours), one sentence each; loads nothing.
        limits: which of our arguments it can't serve, one sentence each; asked for variants of a loaded model, too.
        passes_on: names that the host class takes beyond its parameters.
        hands_to: what gets ``model_kwargs``; None: nothing does.
        secret: where a secret goes instead of the arguments.
        adapter_excludes: own arguments that ``adapter=`` stands for.
        shared: whether ``scorer=shared`` works on it.
        connects: whether loading is connecting: then it comes before a corpus is loaded, as what the other side can't
            give is to be known by then.
    """

    type: str
    problems: Callable[[Given, Given], list[str]] = _none
    limits: Callable[[Given], list[str]] = _none
    passes_on: Collection[str] = ()
    hands_to: str | None = None
    secret: str = "set the environment variable HF_TOKEN (or run `hf auth login`)"
    adapter_excludes: tuple[str, ...] = ()
    shared: bool = False
    connects: bool = False

    @property
    def where(self) -> str:
        """Names the arguments in an error."""
        return f"the arguments of {self.type} (--model_args)"


def parameters_of(host_class: type) -> dict[str, Any]:
    """Every parameter that a class's ``__init__`` takes, its bases' too, which ``**kwargs`` reach: name -> default."""
    found: dict[str, Any] = {}
    for base in host_class.__mro__[:-1]:
        if "__init__" in vars(base):
            for one in inspect.signature(vars(base)["__init__"]).parameters.values():
                if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and one.name != "self":
                    found.setdefault(one.name, one.default)
    return found


def missing_packages(kind: str, packages: Collection[str], install: str) -> list[str]:
    """One sentence if packages that a model type needs aren't installed, which names what installs them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return [f"{kind} needs the package {' and '.join(missing)}; install with `{install}`"] if missing else []
