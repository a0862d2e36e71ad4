"""A process that pushes and may be killed while it does; forked from a server that has imported everything already."""

from __future__ import annotations

import os


def push(endpoint: str, token: str, home: str, run: str, repo_id: str, base: str) -> None:
    """Pushes one run; what becomes of the process is the test's affair."""
    os.environ |= {"HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    import huggingface_hub.constants as constants

    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_DISABLE_PROGRESS_BARS = True
    constants.HF_HUB_CACHE = home
    from lm_eval_kinject.hub.push import push_run

    push_run(run, repo_id, base=base)
