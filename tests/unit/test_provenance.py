"""Fingerprints are stable, writes are whole or absent, and the environment names nobody."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm_eval_kinject import provenance
from lm_eval_kinject.provenance import (
    atomic_write,
    canonical_bytes,
    environment,
    fingerprint,
    fingerprint_file,
    fingerprint_folder,
    fingerprint_records,
    publish_folder,
    read_json,
    write_json,
)
from lm_eval_kinject.records import Chunk


def test_canonical_bytes_by_hand() -> None:
    value = {"b": (1, 2.5, None), "a": "é", "c": {"z": True, "y": []}}
    assert canonical_bytes(value) == '{"a":"é","b":[1,2.5,null],"c":{"y":[],"z":true}}'.encode()


def test_fingerprint_is_the_sha256_of_the_canonical_bytes() -> None:
    # printf '{"a":1}' | sha256sum
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_fingerprint_is_the_same_in_another_process(root: Path) -> None:
    code = "from lm_eval_kinject.provenance import fingerprint; print(fingerprint({'x': [1, 'ü'], 'a': 0.1}))"
    for seed in ("0", "7"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        assert out.strip() == fingerprint({"a": 0.1, "x": (1, "ü")})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, object(), b"x", [Path("x")]])
def test_what_has_no_canonical_bytes_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="fingerprinted"):
        fingerprint(value)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"loss": float("nan")})


def test_records_are_told_apart_by_content_order_and_borders() -> None:
    a, b = Chunk("a", "x"), Chunk("b", "y")
    prints = [fingerprint_records(r) for r in ([a, b], [b, a], [a], [a, b, b], [])]
    assert len(set(prints)) == 5
    assert fingerprint_records(iter([a, b])) == prints[0]
    assert fingerprint_records(["1", "2"]) != fingerprint_records(["12"])


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_bytes(b"abc")
    assert fingerprint_file(tmp_path / "one" / "a.txt").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
    before = fingerprint_folder(tmp_path / "one")
    for ignored in (".hidden", "__pycache__/x.pyc"):
        (tmp_path / "one" / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / "one" / ignored).write_bytes(b"?")
    assert fingerprint_folder(tmp_path / "one") == before
    (tmp_path / "one").rename(tmp_path / "two")
    assert fingerprint_folder(tmp_path / "two") == before
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert fingerprint_folder(tmp_path / "two") != before


def test_atomic_write_replaces_or_leaves(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with atomic_write(target, "w") as handle:
        handle.write("old\n")

    def fail() -> None:
        with atomic_write(target, "w") as handle:
            handle.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_bytes() == b"old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~provenance._umask()


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"b": [1], "a": "ü"})
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "m.json") == {"a": "ü", "b": [1]}


def test_publish_folder_replaces_or_leaves(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        with publish_folder(target) as folder:
            assert not any(folder.iterdir())
            (folder / "data").write_text(text, encoding="utf-8")
        assert (target / "data").read_text(encoding="utf-8") == text

    def interrupt() -> None:
        with publish_folder(target) as folder:
            (folder / "data").write_text("third", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert (target / "data").read_text(encoding="utf-8") == "second"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_environment_is_plain_and_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = environment()
    text = json.dumps(found)
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"]
    assert found["packages"]["lm-eval"]
    assert (found["threads"], found["cpu_capability"]) == (
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
    )
    assert "hf_secret" not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text or len(platform.node()) < 4
    assert getpass.getuser() not in {found["cpu"], found["platform"]}
