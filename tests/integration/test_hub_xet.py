"""Pushing with Xet switched on, as the Hub's client has it wherever `hf_xet` is installed, as far as that goes here.

Xet's service isn't part of the test Hub. So this shows what becomes of a push to a Hub without it, and of one whose
service can't be reached: nothing of it is to be seen, it says what to do, and doing that finishes it. Every other test
of the Hub has Xet switched off.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.hub_fixture import TOKEN
from helpers.hub_run import make_base
from hub_server import HubServer, Store

pytest.importorskip("hf_xet")
KINJECT = Path(sys.executable).with_name("kinject")
Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nobody answers, and nobody else can while this is held."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(params=["a Hub without Xet", "an Xet service out of reach"])
def hub(request: pytest.FixtureRequest, closed: str) -> Iterator[HubServer]:
    store = Store()
    store.add_user("me", TOKEN)
    with HubServer(store, xet=closed if request.param == "an Xet service out of reach" else None) as server:
        yield server


@pytest.fixture
def push(hub: HubServer, tmp_path: Path) -> Push:
    def push(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        # hf_xet waits minutes for a service that doesn't answer; here one more try is enough.
        patience = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
        environment = {**os.environ, **hub.environment(tmp_path / "home", TOKEN), **patience, **variables}
        command = [KINJECT, "push", str(folder), "--as", "model", "--to", "me/reader"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return push


def test_xet_out_of_reach_is_said_and_the_older_way_finishes_the_push(
    hub: HubServer, push: Push, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "reader")
    with hub.trouble() as plan:
        failed = push(base, HF_HUB_DISABLE_XET="0")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("kinject: Push to me/reader failed: Network error: ")
    assert "set HF_HUB_DISABLE_XET=1 to send them without it; then run the same command again" in last
    assert "Traceback" not in failed.stderr
    assert "trying again" not in failed.stderr  # by us: hf_xet has a patience of its own
    assert TOKEN not in failed.stderr
    assert any("xet-write-token" in seen for seen in plan.seen)  # it is Xet that was tried
    repo = hub.store.repos["model", "me/reader"]
    assert repo.private
    assert set(repo.resolve("main").files) == {".gitattributes"}  # as it was made

    assert push(base, HF_HUB_DISABLE_XET="1").returncode == 0
    assert len(repo.history(repo.resolve("main"))) == 2
    assert repo.resolve("main").files["model.safetensors"].lfs


def test_without_large_files_that_are_new_xet_is_not_asked(hub: HubServer, push: Push, tmp_path: Path) -> None:
    base = make_base(tmp_path / "reader")
    assert push(base, HF_HUB_DISABLE_XET="1").returncode == 0
    changed = shutil.copytree(base, tmp_path / "changed")
    (changed / "README.md").write_text("---\nlicense: apache-2.0\n---\nAnother card.\n", encoding="utf-8")
    with hub.trouble() as plan:
        done = push(changed, HF_HUB_DISABLE_XET="0")
    assert done.returncode == 0, done.stderr
    assert not any("xet" in seen for seen in plan.seen)
    repo = hub.store.repos["model", "me/reader"]
    assert b"Another card." in hub.store.files("me/reader")["README.md"]
    assert len(repo.history(repo.resolve("main"))) == 3
