"""The test Hub keeps to the contract of the real one, as far as the unmodified clients can tell.

One process runs huggingface_hub, datasets, transformers and peft against it (see helpers/hub_clients.py); the tests
look at what it reports and at what is in the server's store afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import make_tiny
from hub_server import HubServer, Store

TOKEN = "hf_" + "t" * 34


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    store = Store()
    store.add_user("me", TOKEN)
    with HubServer(store, multipart_from=500_000, part_size=200_000, page_size=4) as running:
        yield running


@pytest.fixture(scope="module")
def seen(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("clients")
    program = Path(__file__).parents[1] / "helpers" / "hub_clients.py"
    environment = {**os.environ, **server.environment(scratch / "home", TOKEN), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), make_tiny("llama", scratch), str(scratch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("SEEN "))


def test_repositories_and_files(seen: dict[str, Any]) -> None:
    hub = seen["hub"]
    assert hub["whoami"] == "me"
    assert hub["url"] == ["me", "things"]
    assert hub["private"] is True
    assert hub["sha"] is True
    assert hub["lfs"] == ["a/big.bin", "a/small.bin"]
    assert hub["top"] == [".gitattributes", "README.md", "a", "t.txt"]
    assert sorted(hub["tree"]) == [".gitattributes", "README.md", "a", "a/big.bin", "a/small.bin", "t.txt"]
    assert hub["paths"] == ["a", "t.txt"]
    assert hub["snapshot"] is True
    assert hub["absent"] == [False, True]
    assert hub["same"] is True, "a commit of what is there already must be none"


def test_large_files_went_in_parts_and_in_one_piece(seen: dict[str, Any], server: HubServer) -> None:
    puts = [line for line in server.plan.seen if line.startswith("PUT /lfs/models/me/things/")]
    assert sum("/part/" in line for line in puts) == 4  # 700,000 bytes in parts of 200,000
    assert sum("/part/" not in line for line in puts) == 1  # the 70,000 bytes


def test_references_and_pull_requests(seen: dict[str, Any]) -> None:
    hub = seen["hub"]
    assert hub["pr"] == [1, "refs/pr/1", False]
    assert hub["pr file"] == "u"
    assert hub["open"] == [[1, "draft"]]
    assert hub["merged"] == [True, "merged"]
    assert hub["refs"] == [["b/1", "main"], ["v1"], ["1"]]
    assert hub["at branch"] is True
    assert hub["history"] == ["pr (#1)", "all", "initial commit"]


def test_refusals_become_the_clients_own_exceptions(seen: dict[str, Any]) -> None:
    assert seen["hub"]["errors"] == {
        "no repo": "RepositoryNotFoundError 404",
        "no revision": "RevisionNotFoundError 404",
        "no file": "RemoteEntryNotFoundError 404",
        "nobody": "RepositoryNotFoundError 401",
        "bad token": "HfHubHTTPError 401",
        "not mine": "HfHubHTTPError 403",
        "exists": "HfHubHTTPError 409",
        "moved": "HfHubHTTPError 412",
        "card": "ValueError None",
        "results": "BadRequestError 400",
    }


def test_transformers_peft_and_datasets(seen: dict[str, Any]) -> None:
    assert seen["models"] == {"model": True, "adapter": True}
    assert seen["datasets"] == {"rows": True}
