"""Hub ids: from the Hub's own cache offline, with the code that downloads; and every way in which it can fail."""

from __future__ import annotations

import errno
import json
import shutil
import traceback
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from helpers.tiny_encoders import make_bert, make_cross_encoder, tiny_corpus
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import CorpusError, IndexStoreError, ModelError, RetrievalError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever
from lm_eval_kinject.retrieval.encoders import KNOWN
from lm_eval_kinject.retrieval.rerank import ByModel, CrossEncoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(hub_cache: Path, repo: str, kind: str, commit: str = COMMIT) -> Path:
    """The folder that a download of a repository's main branch at ``commit`` leaves in the Hub's cache."""
    root = hub_cache / f"{kind}s--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit, encoding="utf-8")
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def test_a_dataset_from_the_cache(hub_cache: Path) -> None:
    folder = snapshot(hub_cache, "me/events", "dataset")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n", encoding="utf-8")
    (folder / "corpus.jsonl").write_text(json.dumps({"id": "a", "text": "One."}), encoding="utf-8")
    for spec in ("me/events", f"me/events@{COMMIT}", "me/events@main"):
        corpus = load_corpus(spec)
        assert (corpus.name, corpus.revision, corpus.licence) == ("me/events", COMMIT, "cc0-1.0")
        assert corpus.source == "Hub dataset me/events"
        assert [c.id for c in corpus.chunks] == ["a"]


def test_a_prebuilt_index_from_the_cache(hub_cache: Path, tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    built = make_retriever(f"bge:{bert}", tiny_corpus(), cache=tmp_path / "indexes", device="cpu").index.path
    folder = snapshot(hub_cache, "me/index", "dataset")
    shutil.copytree(built, folder, dirs_exist_ok=True)
    for name in ("me/index", f"me/index@{COMMIT}"):
        again = make_retriever(f"bge:{bert}", tiny_corpus(), index=name, cache=tmp_path / "none", device="cpu")
        assert again.index.path == folder
    with pytest.raises(IndexStoreError, match=r"me/nothing.*Leave index= out to build the index here"):
        make_retriever(f"bge:{bert}", tiny_corpus(), index="me/nothing", device="cpu")


def test_a_known_retriever_from_the_cache_at_its_pinned_commit(hub_cache: Path, tmp_path: Path) -> None:
    spec = KNOWN["bge"]
    assert spec.query_revision is not None
    make_bert(snapshot(hub_cache, spec.query_model, "model", spec.query_revision))
    for name in ("bge", spec.query_model):
        retriever = make_retriever(name, tiny_corpus(), cache=tmp_path / "indexes", device="cpu")
        model = retriever.provenance()["encoder"]["query_model"]
        assert model == {"repo": spec.query_model, "commit": spec.query_revision}
        assert len(retriever.search([Query("library")], 3)[0]) == 3
    assert len(list((tmp_path / "indexes" / "indexes").glob("*/manifest.json"))) == 1  # both names mean one thing
    with pytest.raises(RetrievalError, match="can't be reached"):
        make_retriever("bge", tiny_corpus(), revision="f" * 40, device="cpu")


def test_a_model_by_id_records_the_commit(hub_cache: Path, tmp_path: Path) -> None:
    make_bert(snapshot(hub_cache, "me/encoder", "model"))
    retriever = make_retriever("me/encoder", tiny_corpus(), cache=tmp_path, device="cpu")
    assert retriever.provenance()["encoder"]["query_model"] == {"repo": "me/encoder", "commit": COMMIT}


def test_a_cross_encoder_by_id_records_the_commit(hub_cache: Path) -> None:
    make_cross_encoder(snapshot(hub_cache, "me/cross", "model"))
    for asked in ("me/cross", f"me/cross@{COMMIT}"):
        assert CrossEncoder(asked, "cpu").provenance()["model"] == {"repo": "me/cross", "commit": COMMIT}
        assert ByModel(model=asked).provenance()["asked"] == asked
    with pytest.raises(RetrievalError, match=r"me/cross can't be reached .*pass rerank= the folder of a cross-encoder"):
        CrossEncoder("me/cross@" + "f" * 40, "cpu")


def response(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={}, request=None, url="https://hub", text="", json=dict)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (hub_errors.GatedRepoError("x", response=response(403)), "is gated: accept its terms"),
        (hub_errors.RepositoryNotFoundError("x", response=response(404)), "The Hub has no model 'a/b'"),
        (hub_errors.RevisionNotFoundError("x", response=response(404)), "has no revision 'v1'"),
        (hub_errors.HfHubHTTPError("x", response=response(500)), "can't be reached"),
        (hub_errors.LocalEntryNotFoundError("x"), "not, or not whole, in the local Hub cache"),
        (ConnectionError("x"), "can't be reached"),
        (OSError(errno.ENOSPC, "No space left on device"), "could not be saved: No space left on device"),
    ],
)
def test_failures(problem: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        fetch_snapshot("a/b", kind="model", revision="v1", error=ModelError, offline_advice="Use another.")
    assert message in str(caught.value)
    assert "a/b" in str(caught.value)
    assert caught.value.__cause__ is problem


TOKEN = "hf_" + "a1" * 17


@pytest.mark.parametrize("kind", ["itself", "cause", "context"])
def test_no_token_in_a_traceback(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        told = hub_errors.HfHubHTTPError(f"what is Bearer {TOKEN}?", response=response(400))
        if kind == "itself":
            raise told
        if kind == "cause":
            raise hub_errors.LocalEntryNotFoundError("not in the cache") from told
        try:
            raise told
        except hub_errors.HfHubHTTPError:
            raise ConnectionError("none")  # noqa: B904 - a context without a cause is what is tested

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        fetch_snapshot("a/b", kind="model", error=ModelError)
    text = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in text
    assert "can't be reached" in text


def test_other_errors_are_not_called_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ZeroDivisionError):
        fetch_snapshot("a/b", kind="model")


def test_the_command_that_helps_is_the_one_for_this_kind_and_revision() -> None:
    with pytest.raises(CorpusError, match=r"`hf download a/b --repo-type dataset --revision v1`\. Do this\."):
        fetch_snapshot("a/b", kind="dataset", revision="v1", error=CorpusError, offline_advice="Do this.")


def test_what_is_no_id() -> None:
    with pytest.raises(CorpusError, match="is not a Hub id"):
        fetch_snapshot("a//b", kind="dataset", error=CorpusError)


def test_pickled_weights_are_fetched_only_where_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    folder = tmp_path / COMMIT
    folder.mkdir()

    def download(_: str, *, ignore_patterns: list[str], **__: object) -> str:
        asked.append(ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch_snapshot("a/b", kind="model")
    assert ["*.bin" in patterns for patterns in asked] == [True, False]
    (folder / "model.safetensors").touch()
    assert fetch_snapshot("a/b", kind="model").commit == COMMIT
    assert ["*.bin" in patterns for patterns in asked] == [True, False, True]
