"""What may be published: places, tokens, pickles; and how the client's patience is rationed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lm_eval_kinject.errors import ArgumentError, HubError, PublishError
from lm_eval_kinject.hub import client
from lm_eval_kinject.hub.client import attempt, check_repo_id, redact
from lm_eval_kinject.hub.content import (
    Content,
    collect,
    fingerprint_model,
    is_pickle,
    local_paths,
    replace_paths,
    tensor_shapes,
)
from lm_eval_kinject.provenance import fingerprint, fingerprint_file

TOKEN = "hf_" + "a1" * 17


@pytest.mark.parametrize(
    "text",
    [
        '{"model": "/home/ann/reader"}', "see /Users/ann/x.json.", "~/corpora/a", r"C:\Users\ann\x", "/tmp/x",
        "file:///data/x", "(/mnt/disk/x)", '"C:\\\\Users\\\\ann"',
        "realtimeqa:/home/ann/x", "D:/corpora/events.jsonl", "file:///C:/Users/ann", r"\\server\share\events.jsonl",
        r'"\\\\server\\share\\x"', "/usr/lib", "see /usr/lib.", "(file:///usr/lib)",
    ],
)  # fmt: skip
def test_places_on_a_disk(text: str) -> None:
    assert len(local_paths(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/x", "me/reader", "and/or", "/", "a/tmp/b", "k=3", "1/2", "hf://datasets/me/x",
        "the ratio of home/away", "s3://data/x", "5~6/7", "http://127.0.0.1:80/tmp/x",
        "https://example.org/usr/lib", "2024/01/02", "16:9/4:3", "text/html; a/b", "image/svg+xml", "/usr", "and /or/",
        "/no-such-root/x", "#!/usr/bin/env python", "> /dev/null", "what is in /etc/passwd?", "Q:/A:", r"\\frac\alpha",
        "Q: a:b/c", "10:/12", "</b></i>",
    ],
)  # fmt: skip
def test_what_only_looks_like_one(text: str) -> None:
    assert local_paths(text) == []


def test_any_place_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: path == "/corp7/ann/events.jsonl")
    text = "from /corp7/ann/events.jsonl, as https://example.org/corp7/ann/events.jsonl and /corp7/bob/events.jsonl"
    assert local_paths(text) == ["/corp7/ann/events.jsonl"]


def test_escapes_of_json_are_no_windows_paths() -> None:
    Content({"x.jsonl": b'{"text": "Q:\\nWhat?\\nA:\\tThis."}\n', "x.json": b'["A:\\nB"]'}).check()
    with pytest.raises(PublishError, match=r"names the local path C:.Users.ann"):
        Content({"x.jsonl": b'{}\n{"text": "C:\\\\Users\\\\ann"}\n'}).check()
    with pytest.raises(PublishError, match="names the local path /home/ann/x"):
        Content({"x.json": b'{"/home/ann/x": 1}'}).check()
    with pytest.raises(PublishError, match="names the local path /home/ann/x"):
        Content({"x.json": b"not JSON, but /home/ann/x"}).check()


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-shape")
    assert redact(f"Bearer {TOKEN}, or a-token-of-another-shape") == "Bearer <token>, or <token>"
    assert redact("hf_hub_download of hf_xet") == "hf_hub_download of hf_xet"


def test_pickles() -> None:
    assert all(is_pickle(pickle.dumps([1], protocol)) for protocol in (2, 3, 4, 5))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("archive/data.pkl", b"x")
    assert is_pickle(archive.getvalue())
    assert not is_pickle(b"{}")
    assert not is_pickle(save({"a": np.zeros(2)}))


def test_tensor_shapes(tmp_path: Path) -> None:
    data = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)})
    assert tensor_shapes(data) == {"a": (2, 3), "b": (4,)}
    (tmp_path / "x").write_bytes(data)
    assert tensor_shapes(tmp_path / "x") == tensor_shapes(data)
    for wrong in (b"", b"short", data[:20], data[:-1], data + b"x", b"\xff" * 100, pickle.dumps(list(range(99)))):
        with pytest.raises(PublishError):
            tensor_shapes(wrong)


@pytest.mark.parametrize("path", ["../x.json", "/x.json", "a/../x.json", ".git/config", "a//b.json", "a\\b.json"])
def test_paths_that_lead_out_of_a_repository(path: str) -> None:
    with pytest.raises(PublishError, match="is no path inside a repository"):
        Content({path: b"{}"}).check()


def test_collecting_is_by_an_allow_list(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    for name in ("config.json", "notes.txt", "checkpoint-1/model.safetensors", "checkpoint-1/optimizer.pt",
                 "training_args.bin", ".env"):  # fmt: skip
        (tmp_path / name).write_bytes(b"{}")
    found = collect(tmp_path)
    assert list(found.files) == ["config.json"]
    assert found.left_out == (
        ".env", "checkpoint-1/model.safetensors", "checkpoint-1/optimizer.pt", "notes.txt", "training_args.bin",
    )  # fmt: skip


def test_a_model_is_what_is_published_of_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "optimizer").mkdir()
    pickled = fingerprint_model(tmp_path)
    assert pickled == fingerprint({n: fingerprint_file(tmp_path / n) for n in ("config.json", "pytorch_model.bin")})
    (tmp_path / "model.safetensors").write_bytes(save({"a": np.zeros(2)}))
    model = fingerprint_model(tmp_path)
    assert model == fingerprint({n: fingerprint_file(tmp_path / n) for n in ("config.json", "model.safetensors")})
    for name in ("README.md", "notes.txt", "optimizer/model.safetensors", ".hidden"):
        (tmp_path / name).write_text("left behind, or not the model")
    assert fingerprint_model(tmp_path) == model
    (tmp_path / "tokenizer.json").write_text("{}")
    assert fingerprint_model(tmp_path) != model


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_tables_of_text_are_looked_through(name: str) -> None:
    with pytest.raises(PublishError, match="holds an access token"):
        Content({name: f"id,text\n1,{TOKEN}\n".encode()}).check()


def test_paths_are_replaced_whole(tmp_path: Path) -> None:
    place = str(tmp_path)
    old = {"a": place, "b": [place + "/"], "c": place + "-other", "d": 3, "e": "text"}
    assert replace_paths(old, {place: "me/x"}) == {**old, "a": "me/x", "b": ["me/x"]}


@pytest.mark.parametrize("name", ["me/x", "My-Org/a.b_c-1", "a/1"])
def test_repository_names(name: str) -> None:
    assert check_repo_id(name) == name


@pytest.mark.parametrize("name", ["x", "a/b/c", "../x", "a/..", "-a/b", "a/b--c", "a /b", "a/b\n", "a/b@main", ""])
def test_what_is_no_repository_name(name: str) -> None:
    with pytest.raises(ArgumentError):
        check_repo_id(name)


# Patience -------------------------------------------------------------------------------------------------------------


def test_waits_double_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)

    def work() -> None:
        raise ConnectionResetError(f"reset by peer {TOKEN}")

    with pytest.raises(HubError) as caught:
        attempt("push to me/x", work, said.append)
    assert waits == [1, 2, 4, 8, 16]
    assert len(said) == 5
    assert TOKEN not in "".join([*said, str(caught.value)])
    assert caught.value.__cause__ is None, "its text would carry the token into a traceback"


def test_offline_mode_is_a_setting_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception is a ConnectionError, of which others pass."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)

    def work() -> None:
        raise OfflineModeIsEnabled("offline mode is enabled")

    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set: unset it and try again"):
        attempt("push to me/x", work)
    assert waits == []


def test_what_isnt_the_hubs_doing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise KeyError("a bug of ours")

    with pytest.raises(KeyError):
        attempt("push to me/x", work)
