"""The whole story in one go, with unmodified clients and fresh caches: see helpers/hub_story.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hub_fixture import TOKEN
from helpers.local_tasks import ROOT, TOWNS, chunk_text, copy_current_events
from helpers.tiny_models import make_tiny
from hub_server import HubServer, Store


def write_dataset_folder(folder: Path) -> None:
    """A corpus as a data set folder: chunks, and two further wordings of each for training."""
    folder.mkdir(parents=True)
    chunks = [{"id": f"c{i}", "title": f"News from {town}", "text": chunk_text(i)} for i, town in enumerate(TOWNS)]
    again = [
        {"chunk": f"c{i}", "number": n, "text": f"Once more ({n}): {chunk_text(i)}"}
        for i in range(len(TOWNS))
        for n in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(chunks), folder / "chunks.parquet")
    pq.write_table(pa.Table.from_pylist(again), folder / "paraphrases.parquet")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Bridges\n")


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    store = Store()
    store.add_user("me", TOKEN)
    store.add_user("other", "hf_" + "o" * 34)
    store.create("model", "other/reader-ft-par", "other", private=False)
    base = Path(make_tiny("llama", tmp_path))
    copy_current_events(tmp_path / "material" / "tasks")
    write_dataset_folder(tmp_path / "material" / "corpus")
    with HubServer(store) as hub:
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home", TOKEN),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer")]),
            "KINJECT_CACHE": str(tmp_path / "kinject"),
            "OMP_NUM_THREADS": "1",
        }
        program = ROOT / "tests/helpers/hub_story.py"
        command = [sys.executable, str(program), str(base), str(tmp_path / "material"), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    assert TOKEN not in done.stdout + done.stderr
    seen = json.loads(lines[0].removeprefix("SEEN "))
    assert "adapter_model.safetensors" in seen["pushed"]
    assert seen["pushed again"] == []
    assert seen["pull request"].endswith("/other/reader-ft-par/discussions/1")
    assert 0 <= float(seen["row"]) <= 1
    assert int(seen["plain"]) > 0
    assert seen["verified"] == "me/reader-ft-par"

    card = store.files("me/reader-ft-par")["README.md"].decode()
    assert f"| this + RAG | k=2, bm25 | {float(seen['row']):.3f} |" in card
    everything = b"".join(data for repo in store.repos.values() for data in store.files(repo.id, repo.type).values())
    assert TOKEN.encode() not in everything
    assert str(tmp_path).encode() not in everything
    print(seen["seconds"])
