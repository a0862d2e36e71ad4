"""Records of the registry, and what they are checked against, without a Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub_run import HIDDEN, make_base, make_results, make_run

from lm_eval_kinject.errors import KinjectError, ModelError, PublishError
from lm_eval_kinject.hub import registry
from lm_eval_kinject.hub.adapters import bundle, shape_problems, verify
from lm_eval_kinject.hub.registry import check_base, records, resolve
from lm_eval_kinject.models.results import model_identity


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One's own registry, which is the only one."""
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "adapters_dir", lambda: tmp_path / "none")
    (tmp_path / "cache/adapters").mkdir(parents=True)
    return tmp_path / "cache/adapters"


def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts another reader in the place of the embedded one."""
    for room in ("adapters", "registry"):
        monkeypatch.setattr(f"lm_eval_kinject.hub.{room}.assets_dir", lambda: tmp_path / "assets")


@pytest.fixture
def bundled(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the reader that lies in the registry with its files; returns the record's file."""
    base = make_base(tmp_path / "assets/reader")
    assets(monkeypatch, tmp_path)
    run = make_run(tmp_path / "ft-par", base)
    identity = model_identity(str(run), commit=None, revision=None)["fingerprint"]
    results = make_results(tmp_path / "out", model="reader", peft="ft-par", k=0, identity=identity)
    return bundle(run, "reader-ft-par", own, licence="apache-2.0", results=[results])


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


def test_a_bundled_adapter_works_without_a_network(bundled: Path) -> None:
    found = resolve("reader-ft-par")
    assert found.path == bundled.parent / "reader-ft-par"
    assert (found.repo, found.revision, found.adapter, found.base) == (None, None, True, "reader")
    assert sorted(p.name for p in found.path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "kinject.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    record = records()["reader-ft-par"]
    assert [(s.task, s.value, s.k) for s in record.scores] == [("current_events_cloze", 0.5, 0)]
    assert record.size == sum(p.stat().st_size for p in found.path.iterdir())
    assert verify("reader-ft-par") == record
    assert "  base     reader@" + str(record.base.fingerprint) in record.lines()


def test_another_edition_of_the_reader_is_refused(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "assets/reader/README.md").write_text("Another card makes no other reader.")
    resolve("reader-ft-par")
    shutil.rmtree(tmp_path / "assets")
    make_base(tmp_path / "assets/reader", seed=9)
    for call in (resolve, verify):
        with pytest.raises(ModelError, match="it was trained on another edition of the embedded reader"):
            call("reader-ft-par")


def test_changed_files_are_refused(bundled: Path) -> None:
    weights = bundled.parent / "reader-ft-par/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is not the file that was registered"):
        resolve("reader-ft-par")
    weights.unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        resolve("reader-ft-par")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe": "0" * 64}, "the recipe is another one"),
        ({"corpus": {"name": "x", "fingerprint": "0" * 64}}, "the corpus is another one"),
        ({"corpus": {"name": "x", "fingerprint": "40c3b8c9" * 8}}, "corpus.name is 'x' in the record, 'current_"),
        ({"variant": "ft-reg"}, r"variant is 'ft-reg' in the record, 'ft-par' in kinject\.json"),
        ({"base": {"name": "reader"}}, "base.fingerprint is None in the record, '"),
        ({"base": {"name": "reader", "revision": "0" * 40}}, "adapter_config.json is for revision None of reader"),
        ({"adapter": False}, r"adapter is False in the record, True in kinject\.json"),
        ({"adapter": False, "base": {"name": "me/other"}}, "base.name is 'me/other' in the record, 'reader'"),
        ({"base": {"name": "me/other"}}, "adapter_config.json is for the base 'reader', the record for 'me/other'"),
    ],
)
def test_claims_that_dont_hold(bundled: Path, changes: dict[str, Any], text: str) -> None:
    rewrite(bundled, **changes)
    with pytest.raises(ModelError, match=text):
        verify("reader-ft-par")


def test_an_adapter_of_another_width_is_refused(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "assets/reader")
    assets(monkeypatch, tmp_path)
    bundle(make_run(tmp_path / "wide", base, width=HIDDEN + 1), "wide", own)
    with pytest.raises(ModelError, match=r"lora_A.weight is \(2, 9\) and doesn't fit the base's \(8, 8\)"):
        verify("wide")


def test_shapes() -> None:
    base = {"m.q.weight": (6, 4), "m.norm.weight": (4,), "conv.weight": (4, 12)}
    fits = {
        "base_model.model.m.q.lora_A.weight": (2, 4),
        "base_model.model.m.q.lora_B.weight": (6, 2),
        "base_model.model.conv.lora_A.weight": (2, 4),
        "base_model.model.conv.lora_B.weight": (12, 2),
        "base_model.model.m.norm.weight": (4,),
    }
    assert shape_problems(fits, base) == []
    assert shape_problems({"base_model.model.m.k.lora_A.weight": (2, 4)}, base) == [
        "base_model.model.m.k.lora_A.weight: the base has no module m.k"
    ]
    assert len(shape_problems({"base_model.model.m.q.lora_B.weight": (5, 2)}, base)) == 1
    assert len(shape_problems({"base_model.model.m.norm.weight": (5,)}, base)) == 1
    assert shape_problems({"prompt_embeddings": (10, 64)}, base) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"folder": "../elsewhere"}, "no path inside an adapter"),
        ({"folder": "a/../../b"}, "no path inside an adapter"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}}, "no path inside an adapter"),
        ({"files": {"adapter_model.bin": {"sha256": "0" * 64, "size": 1}}}, "is pickled"),
        ({"files": {"kinject.json": {"sha256": "0" * 64, "size": 1}}}, "no weights"),
        ({"repo": "me/x", "revision": "0" * 40}, "either repo"),
        ({"folder": None, "repo": "me/x"}, "pin the repository to a commit"),
        ({"folder": None, "repo": "me/x", "revision": "main"}, "revision: String should match pattern"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"name": "another"}, "file and name must be the same"),
    ],
)
def test_records_that_cant_be_used(bundled: Path, changes: dict[str, Any], text: str) -> None:
    rewrite(bundled, **changes)
    with pytest.raises(ModelError, match=text):
        resolve("reader-ft-par")


@pytest.mark.parametrize("name", ["../reader-ft-par", "/etc/passwd", "a/b", "..", "reader-ft-par.yaml/..", ""])
def test_names_that_are_paths(bundled: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no adapter's name"):
        resolve(name)


def test_near_names(bundled: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no adapter 'reader-ft-pr'\. Did you mean reader-ft-par\?"):
        resolve("reader-ft-pr")


def test_another_base(bundled: Path, tmp_path: Path) -> None:
    found = resolve("reader-ft-par")
    check_base(found, None)
    check_base(found, "reader")
    check_base(found, str(tmp_path))  # a folder: shapes are checked when it is loaded
    with pytest.raises(ModelError, match=r"was trained on reader and can't be put on Qwen/Qwen3-0\.6B-Base"):
        check_base(found, "Qwen/Qwen3-0.6B-Base")


def test_only_clean_runs_are_bundled(own: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_base(tmp_path / "reader"))
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/home/ann/reader"}))
    with pytest.raises(PublishError, match="names the local path /home/ann/reader"):
        bundle(run, "run", own)
    other = make_run(tmp_path / "other", make_base(tmp_path / "llama"))
    with pytest.raises(KinjectError, match="Only runs on the embedded reader"):
        bundle(other, "other", own)


def test_results_of_another_folder_are_not_bundled(own: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_base(tmp_path / "reader"))
    results = make_results(tmp_path / "out", model="reader", peft="run", k=0)
    with pytest.raises(PublishError, match="not of what the folder run holds now"):
        bundle(run, "run", own, results=[results])


def test_the_packages_own_records_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path))
    assert set(records()) == {"reader-ft-reg-lora", "reader-ft-par-lora"}
    for name, record in records().items():
        assert verify(name) == record
        assert [(s.task, s.k, s.n) for s in record.scores if s.metric == "acc"] == [("current_events_cloze", 0, 910)]
