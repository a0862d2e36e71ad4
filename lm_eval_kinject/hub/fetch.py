"""Downloads of Hub repositories at a known commit: the only importer of ``huggingface_hub`` below the models.

What it is for: a repository id and a revision become a local folder and the commit it holds, from the network or from
the Hub's own cache when there is none. What it does not do: it uploads nothing, loads no model, and takes no token
(``huggingface_hub`` finds the one of the environment by itself).

The one idea: the Hub's cache names a snapshot's folder after its commit, so what was really used is always known,
also offline and when nobody pinned it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.hub.client import without_token
from lm_eval_kinject.provenance import fingerprint_folder

__all__ = ["Snapshot", "fetch_snapshot", "locate_model"]

_OTHER_RUNTIMES = "onnx/* openvino/* coreml/* *.onnx *.h5 *.msgpack *.ot *.gguf *.mlmodel *.ckpt".split()
"""Copies of the same weights for other runtimes."""

_TRANSPORT = {"huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository on this disk: ``path`` is its folder, ``commit`` the full hash of what the folder holds."""

    path: Path
    repo_id: str
    commit: str


def locate_model(
    model: str, *, error: type[KinjectError] = KinjectError, offline_advice: str = ""
) -> tuple[Path, dict[str, str]]:
    """Where a model's weights are, and which they are: a folder by its bytes, a Hub repository by its commit.

    Args:
        model: a folder, or ``owner/name[@revision]``.
        error: as in `fetch_snapshot`, as is ``offline_advice``.
        offline_advice: see there.

    Raises:
        KinjectError: see `fetch_snapshot`.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, {"folder": folder.resolve().name, "sha256": fingerprint_folder(folder)}
    repo_id, _, revision = model.partition("@")
    snapshot = fetch_snapshot(
        repo_id, kind="model", revision=revision or None, error=error, offline_advice=offline_advice
    )
    return snapshot.path, {"repo": repo_id, "commit": snapshot.commit}


def fetch_snapshot(
    repo_id: str,
    *,
    kind: Literal["model", "dataset"],
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    error: type[KinjectError] = KinjectError,
    offline_advice: str = "",
) -> Snapshot:
    """Brings a repository to this disk, or finds it there.

    Args:
        repo_id: ``owner/name``.
        kind: what it is on the Hub.
        revision: commit, tag or branch; None is the default branch, resolved to its commit.
        patterns: glob patterns of the files wanted; None is all, for a model less copies for other runtimes and
            less pickled weights where safetensors exist.
        error: the exception to raise, so that the message comes as the caller's kind.
        offline_advice: a sentence naming what works without a network.

    Raises:
        KinjectError: (as ``error``) when it can't be reached, doesn't exist, is gated, or the disk is full.
    """

    def download(revision: str | None, ignore: Sequence[str] | None) -> Snapshot:
        from huggingface_hub import snapshot_download

        allow = None if patterns is None else list(patterns)
        try:
            folder = snapshot_download(
                repo_id, repo_type=kind, revision=revision, allow_patterns=allow, ignore_patterns=ignore
            )
        except Exception as problem:
            said = _explain(problem, kind, repo_id, revision, offline_advice)
            if said is None:
                raise
            raise error(said.strip()) from without_token(problem)
        return Snapshot(Path(folder), repo_id, Path(folder).name)

    if kind != "model" or patterns is not None:
        return download(revision, None)
    snapshot = download(revision, [*_OTHER_RUNTIMES, "*.bin"])
    if any(snapshot.path.rglob("*.safetensors")):
        return snapshot
    # Older repositories have pickled weights only; transformers reads them with weights_only.
    return download(snapshot.commit, _OTHER_RUNTIMES)


def _explain(problem: Exception, kind: str, repo_id: str, revision: str | None, advice: str) -> str | None:
    """What went wrong and what to do; None where neither the Hub, the network nor the disk is to blame."""
    from huggingface_hub import errors

    at = f"{repo_id}@{revision}" if revision else repo_id
    if isinstance(problem, errors.GatedRepoError):
        return (
            f"The {kind} {at} is gated: accept its terms on its Hub page and log in with `hf auth login` (or set "
            f"HF_TOKEN). {advice}"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"The {kind} {repo_id} has no revision {revision!r}: give a commit, tag or branch of it."
    if isinstance(problem, errors.RepositoryNotFoundError):
        return (
            f"The Hub has no {kind} {repo_id!r} (or it is private and you are not logged in): check the spelling, or "
            f"run `hf auth login`. {advice}"
        )
    if isinstance(problem, errors.HFValidationError):
        return f"{repo_id!r} is not a Hub id: it must be `owner/name`. {advice}"
    # The client's HTTP library changes between releases.
    if not isinstance(problem, OSError) and type(problem).__module__.partition(".")[0] not in _TRANSPORT:
        return None
    if isinstance(problem, OSError) and problem.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}:
        return f"The {kind} {at} could not be saved: {problem.strerror} (set HF_HOME to a disk with room)."
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    why = "HF_HUB_OFFLINE is set" if offline else "no answer from the Hub"
    options = (" --repo-type dataset" if kind == "dataset" else "") + (f" --revision {revision}" if revision else "")
    return (
        f"The {kind} {repo_id} can't be reached ({why}) and is not, or not whole, in the local Hub cache. Where there "
        f"is a network, fetch it once with `hf download {repo_id}{options}`. {advice}"
    )
