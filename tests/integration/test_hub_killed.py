"""A push that is killed with SIGKILL at any moment, and run again, gives what an untroubled push gives.

The moments are drawn at random over all requests that a push makes, and within a request: before the Hub has done
anything, when half of the body has arrived, and after the work but before the answer.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from helpers import hub_pusher
from helpers.hub_fixture import TOKEN
from helpers.hub_run import make_base, make_run
from hub_server import Fault, HubServer, Store

KILLS = 20


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    store = Store()
    store.add_user("me", TOKEN)
    with HubServer(store, multipart_from=200_000, part_size=100_000) as server:
        yield server


@pytest.fixture(scope="module")
def pusher() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["huggingface_hub", "helpers.hub_pusher", "lm_eval_kinject.hub.push"])
    return context


def test_killed_at_random_moments(hub: HubServer, pusher: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "reader")
    run = make_run(tmp_path / "run", base, size=75_000)  # 300 kB: three parts

    def start(repo_id: str) -> BaseProcess:
        arguments = (hub.url, TOKEN, str(tmp_path / "home"), str(run), repo_id, "me/reader")
        process: BaseProcess = pusher.Process(target=hub_pusher.push, args=arguments)
        process.start()
        return process

    # The base is put there without a client: this test is about pushing runs.
    repo = hub.store.create("model", "me/reader", "me", private=True)
    files = {p.name: hub.store.put(p.read_bytes(), lfs=p.suffix == ".safetensors") for p in base.iterdir()}
    repo.refs["refs/heads/main"] = hub.store.commit(repo, repo.resolve("main").id, files, "base", "me").id

    for name in ("me/first", "me/untroubled"):  # the first fills the cache with what it reads of the base
        with hub.trouble() as plan:
            untroubled = start(name)
            untroubled.join(60)
            requests = len(plan.seen)
        assert untroubled.exitcode == 0
    expected = named(hub.store.files("me/untroubled"), "untroubled")

    draw = random.Random(6)
    moments = [(draw.randrange(requests), draw.choice(["before", "body", "after"])) for _ in range(KILLS)]
    for number, (request, seam) in enumerate(moments):
        repo_id = f"me/killed-{number}"
        process: list[BaseProcess] = []

        def kill(process: list[BaseProcess] = process) -> None:
            while not process:  # the first request can be faster than the line below
                time.sleep(0.001)
            pid = process[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

        with hub.trouble(Fault(skip=request, reset=seam, then=kill)):
            process.append(start(repo_id))
            process[0].join(60)
        assert process[0].exitcode == -signal.SIGKILL, (number, request, seam)
        if ("model", repo_id) in hub.store.repos:
            visible = named(hub.store.files(repo_id), f"killed-{number}")
            assert visible in ({".gitattributes": expected[".gitattributes"]}, expected), "something half-published"
        again = start(repo_id)
        again.join(60)
        assert again.exitcode == 0
        assert named(hub.store.files(repo_id), f"killed-{number}") == expected
        commits = hub.store.repos["model", repo_id]
        assert len(commits.history(commits.resolve("main"))) == 2


def named(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    """The files as if the repository had another name (the card and the record tell theirs)."""
    return {path: data.replace(name.encode(), b"NAME") for path, data in files.items()}
