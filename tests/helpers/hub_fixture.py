"""Lets the clients of this process talk to a test Hub, though they have read their settings long ago.

Tests with a process of their own set environment variables instead (`HubServer.environment`); this is for the many
that would spend all their time on starting Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import HubServer, Store

TOKEN = "hf_" + "PlantedTokenForTests0123456789abcd"


@contextmanager
def local_hub(patch: pytest.MonkeyPatch, home: Path, **options: int) -> Iterator[HubServer]:
    """A running Hub with the accounts ``me`` (logged in) and ``other``, and this process's clients turned to it."""
    import huggingface_hub.constants as constants

    store = Store()
    store.add_user("me", TOKEN)
    store.add_user("other", "hf_" + "o" * 34)
    with HubServer(store, **options) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("HF_TOKEN", TOKEN)
        # Waits of the client and of ours, which are tested by themselves.
        patch.setattr("time.sleep", lambda seconds: None)
        yield server
