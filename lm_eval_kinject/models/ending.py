"""How a run of the ``lm_eval`` command ends that one of our models was in, when it can't go on: in words.

What it is for: Ctrl-C, and an error whose text already says what to do, end in that text alone, as `kinject` does it,
and not in twenty lines of traceback that hide it. What it does not do: it catches nothing, changes no exit status
(Ctrl-C: 130 in a shell, an error: 1), and leaves other models, scripts that call lm_eval and all other errors alone.

The one idea: lm_eval's command catches nothing, so the interpreter's last hook sees everything, and the traceback that
it is given tells whether the command was on the way.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.log import log

__all__ = ["install"]

_STOPPED = "stopped; what is built of an index is kept, and the same command goes on with it"
_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def install() -> None:
    """Put the hook before the one in place, once a process; called when one of our models is made."""
    if not isinstance(sys.excepthook, functools.partial) or sys.excepthook.func is not _end:
        sys.excepthook = functools.partial(_end, sys.excepthook)


def _end(previous: _Hook, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say how the run ended, or leave that to the hook that was there before."""
    said = _STOPPED if isinstance(error, KeyboardInterrupt) else str(error) if isinstance(error, KinjectError) else None
    if said is None or not _from_command(trace):
        previous(kind, error, trace)
        return
    log.debug("where it happened", exc_info=(kind, error, trace))  # LMEVAL_LOG_LEVEL=DEBUG shows it
    sys.stderr.write(f"\nkinject: {said}\n")  # a progress bar may stand in the line


def _from_command(trace: TracebackType | None) -> bool:
    """Whether the error came out of lm_eval's command line, by whichever of its names that was started."""
    import lm_eval

    command = Path(str(lm_eval.__file__)).parent / "__main__.py"
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == command:
            return True
        trace = trace.tb_next
    return False
