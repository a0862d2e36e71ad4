"""An index is the same however it came about: in one go, after kills, by one of several processes, or rebuilt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_encoders import SENTENCES, HashEncoder, corpus_of, hash_encoder, make_bert

from lm_eval_kinject.provenance import fingerprint_file
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval import build_index, index_info, make_index, open_index, verify_index
from lm_eval_kinject.retrieval.processes import Processes, devices

TEXTS = [f"text {i % 1500}" for i in range(1800)]  # 1,500 distinct: shards of 512, 512 and 476
CORPUS = corpus_of(TEXTS)

_CHILD = """
import logging, sys, time
from helpers.tiny_encoders import HashEncoder, corpus_of
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval import build_index
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
cache, hang_after, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
encoder = HashEncoder(delay=delay)
shards = 0
def progress(done, total):
    global shards
    shards += 1
    print("shard", done, total, flush=True)
    if shards == hang_after:
        time.sleep(60)
index = build_index(corpus_of([f"text {i % 1500}" for i in range(1800)]), encoder, cache=cache, progress=progress)
print("built", encoder.embedded, index.path, type(index.vectors).__name__, flush=True)
"""


def child(
    cache: Path, root: Path, *, hang_after: int = 0, delay: float = 0.0, code: str = _CHILD
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    command = [sys.executable, "-c", code, str(cache), str(hang_after), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def checksum(index_folder: Path | None) -> str:
    assert index_folder is not None
    assert verify_index(index_folder) == []
    return fingerprint_file(index_folder / "embeddings.npy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checksum of the vectors of an uninterrupted build."""
    encoder = HashEncoder()
    index = build_index(CORPUS, encoder, cache=tmp_path_factory.mktemp("whole"))
    assert encoder.embedded == 1500  # equal texts are embedded once
    np.testing.assert_array_equal(index.vectors, encoder.encode_queries(TEXTS))
    return checksum(index.path)


def test_a_killed_build_goes_on_and_ends_equal(tmp_path: Path, root: Path, whole: str) -> None:
    killed = child(tmp_path, root, hang_after=2)
    assert killed.stdout is not None
    while not killed.stdout.readline().startswith("shard 1024"):
        pass
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(tmp_path.glob("indexes/*/manifest.json"))  # nothing that could be taken for an index

    encoder = HashEncoder()
    index = build_index(CORPUS, encoder, cache=tmp_path)
    assert encoder.embedded == 1500 - 1024
    assert checksum(index.path) == whole
    assert not list(tmp_path.glob("indexes/*.building"))


def test_a_damaged_shard_of_a_killed_build_is_made_again(tmp_path: Path, root: Path, whole: str) -> None:
    killed = child(tmp_path, root, hang_after=2)
    assert killed.stdout is not None
    while not killed.stdout.readline().startswith("shard 1024"):
        pass
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (shard,) = tmp_path.glob("indexes/*.building/shards/00000.npy")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    encoder = HashEncoder()
    assert checksum(build_index(CORPUS, encoder, cache=tmp_path).path) == whole
    assert encoder.embedded == 1500 - 512


def test_processes_started_together_build_once_and_map_the_same_file(tmp_path: Path, root: Path, whole: str) -> None:
    children = [child(tmp_path, root, delay=0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in children]
    assert [process.returncode for process in children] == [0, 0, 0]
    built = [line.split()[1:] for output in outputs for line in output.splitlines() if line.startswith("built")]
    assert sorted(int(embedded) for embedded, _, _ in built) == [0, 0, 1500]
    assert {kind for _, _, kind in built} == {"memmap"}
    (folder,) = {path for _, path, _ in built}
    assert checksum(Path(folder)) == whole


_SHARED_CHILD = """
import sys, time
from functools import partial
from multiprocessing import active_children
from helpers.tiny_encoders import HashEncoder, corpus_of, hash_encoder
from lm_eval_kinject.retrieval import build_index
from lm_eval_kinject.retrieval.processes import Processes
def progress(done, total):
    print("shard", *(child.pid for child in active_children()), flush=True)
    time.sleep(60)
helpers = Processes(2, partial(hash_encoder, delay=1.0), ["cpu"])
texts = [f"text {i % 1500}" for i in range(1800)]
build_index(corpus_of(texts), HashEncoder(), cache=sys.argv[1], progress=progress, helpers=helpers)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_shared_build_that_is_killed_leaves_no_process_and_ends_equal(tmp_path: Path, root: Path, whole: str) -> None:
    killed = child(tmp_path, root, code=_SHARED_CHILD)
    assert killed.stdout is not None
    said = killed.stdout.readline().split()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    helpers = [int(pid) for pid in said[1:]]
    assert (said[0], len(helpers)) == ("shard", 2)
    until = time.monotonic() + 60
    while any(map(alive, helpers)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, helpers))
    assert not list(tmp_path.glob("indexes/*/manifest.json"))
    (folder,) = tmp_path.glob("indexes/*.building/shards")
    there = sum(np.load(note.with_suffix(".npy")).shape[0] for note in folder.glob("*.json"))
    assert there >= 476

    encoder = HashEncoder()
    assert checksum(build_index(CORPUS, encoder, cache=tmp_path).path) == whole
    assert encoder.embedded == 1500 - there


def test_what_a_killed_helper_left_is_embedded_here(
    tmp_path: Path, whole: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        if not seen:
            for helper in active_children():
                assert helper.pid is not None
                os.kill(helper.pid, signal.SIGKILL)
        seen.append((done, total))

    encoder = HashEncoder()
    helpers = Processes(2, partial(hash_encoder, delay=1.5), ["cpu"])
    index = build_index(CORPUS, encoder, cache=tmp_path, progress=progress, helpers=helpers)
    assert checksum(index.path) == whole
    assert 0 < encoder.embedded <= 1500 - 476
    assert "this one goes on alone" in caplog.text
    assert seen == sorted(set(seen))
    assert seen[-1] == (1500, 1500)


def test_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    """A transformer, several batches a shard, texts of every length; the last shard is not full."""
    model = make_bert(tmp_path / "model")
    texts = [" ".join(SENTENCES[(i * j) % 8] for j in range(1 + i % 4)) + f" Item {i}." for i in range(700)]
    corpus = corpus_of(texts)
    seen: list[tuple[int, int]] = []
    folders = []
    for processes in (1, 2):
        path, said = tmp_path / f"by-{processes}", seen if processes == 2 else []
        index = make_index(
            f"e5:{model}",
            corpus,
            path=path,
            device="cpu",
            processes=processes,
            progress=lambda done, total, said=said: said.append((done, total)),
        )
        folders.append(index.path)
    one, two = (index_info(folder) for folder in folders if folder is not None)
    assert one.pop("built").keys() == two.pop("built").keys()
    assert one == two  # key, settings, counts, and the SHA-256 of every file
    assert checksum(folders[0]) == checksum(folders[1])
    assert sorted({done for done, _ in seen})[-1] == 700
    assert len(seen) == 2  # shards, each said once


def test_each_helper_has_a_gpu_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices("cuda:1") == ["cuda:1"]
    assert devices("cpu") == ["cpu"]


def test_an_interrupted_build_leaves_whole_files_only(tmp_path: Path, whole: str) -> None:
    class Interrupted(HashEncoder):
        def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Any, int]:
            if self.embedded:
                raise KeyboardInterrupt
            return super().encode_passages(chunks)

    with pytest.raises(KeyboardInterrupt):
        build_index(CORPUS, Interrupted(), cache=tmp_path)
    names = sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    assert names == ["00000.json", "00000.npy", "settings.json"]
    assert checksum(build_index(CORPUS, HashEncoder(), cache=tmp_path).path) == whole


def test_second_run_embeds_nothing_and_maps(tmp_path: Path) -> None:
    first = build_index(CORPUS, HashEncoder(), cache=tmp_path)
    encoder = HashEncoder()
    second = build_index(CORPUS, encoder, cache=tmp_path)
    assert encoder.embedded == 0
    assert isinstance(second.vectors, np.memmap)
    assert not second.vectors.flags.writeable
    assert (second.path, second.key) == (first.path, first.key)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_index(CORPUS, HashEncoder(), cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1500), (1024, 1500), (1500, 1500)]


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    path = build_index(CORPUS, HashEncoder(), cache=tmp_path).path
    assert path is not None
    info = index_info(path)
    assert (info["chunks"], info["dimension"], info["corpus"]) == (1800, 8, "tiny")
    assert info["settings"]["corpus"] == CORPUS.fingerprint
    assert info["built"]["environment"]["packages"]["numpy"] == np.__version__
    assert str(tmp_path) not in json.dumps(info)
    assert open_index(path).settings == info["settings"]
