"""Indexes that are damaged, foreign or can't be written: named, never used."""

from __future__ import annotations

import errno
import json
import logging
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_encoders import HashEncoder, corpus_of

from lm_eval_kinject.errors import IndexStoreError
from lm_eval_kinject.provenance import fingerprint, fingerprint_file
from lm_eval_kinject.retrieval import (
    build_index,
    cache_dir,
    cached_indexes,
    index,
    index_info,
    index_settings,
    open_index,
    verify_index,
)

CORPUS = corpus_of([f"text {i}" for i in range(30)])
OTHER = corpus_of([f"other {i}" for i in range(30)])


def built(cache: Path) -> Path:
    path = build_index(CORPUS, HashEncoder(), cache=cache).path
    assert path is not None
    return path


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "embeddings.npy").read_bytes())
    data[200] ^= 1
    (folder / "embeddings.npy").write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / "embeddings.npy").read_bytes()
    (folder / "embeddings.npy").write_bytes(data[:-8])


def lose_ids(folder: Path) -> None:
    (folder / "ids.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{", encoding="utf-8")


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}", encoding="utf-8")


def forge_settings(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["settings"]["encoder"]["name"] = "another"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def another_index(folder: Path) -> None:
    foreign = build_index(OTHER, HashEncoder(), cache=folder.parent.parent).path
    assert foreign is not None
    shutil.rmtree(folder)
    shutil.copytree(foreign, folder)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "the checksum of embeddings.npy doesn't match": flip_a_byte,
    "embeddings.npy has 1080 bytes instead of 1088": truncate,
    "ids.json is missing": lose_ids,
    "it has no manifest.json": lose_manifest,
    "its manifest.json is malformed": garble_manifest,
    "its manifest.json lacks or garbles an entry": empty_manifest,
    "its settings don't match its key": forge_settings,
    "is of another corpus or encoder: corpus: the index has": another_index,
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_or_foreign_index_is_named_and_rebuilt(
    message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = built(tmp_path)
    before = fingerprint_file(folder / "embeddings.npy")
    DAMAGES[message](folder)
    encoder = HashEncoder()
    with caplog.at_level(logging.WARNING):
        again = build_index(CORPUS, encoder, cache=tmp_path)
    assert message in caplog.text
    assert str(folder) in caplog.text
    assert encoder.embedded == 30
    assert again.path == folder
    assert verify_index(folder) == []
    assert fingerprint_file(folder / "embeddings.npy") == before


@pytest.mark.parametrize("message", DAMAGES)
def test_and_never_opened(message: str, tmp_path: Path) -> None:
    folder = built(tmp_path)
    DAMAGES[message](folder)
    with pytest.raises(IndexStoreError) as caught:
        open_index(folder, index_settings(CORPUS, HashEncoder()))
    assert message in str(caught.value)


def test_what_differs_is_said(tmp_path: Path) -> None:
    folder = built(tmp_path)
    with pytest.raises(IndexStoreError) as caught:
        open_index(folder, index_settings(CORPUS, HashEncoder("better", dimension=9)))
    message = str(caught.value)
    assert "encoder.name: the index has 'hash', this run needs 'better'" in message
    assert "encoder.dimension: the index has 8, this run needs 9" in message
    assert "corpus:" not in message


def test_settings_tell_apart_all_that_decides_vectors() -> None:
    base = index_settings(CORPUS, HashEncoder())
    cut = corpus_of([f"text {i}" for i in range(30)])
    object.__setattr__(cut, "chunking", {"method": "sentences", "words": 9, "overlap": 0})
    others = [
        index_settings(OTHER, HashEncoder()),
        index_settings(CORPUS, HashEncoder("x")),
        index_settings(cut, HashEncoder()),
    ]
    assert len({fingerprint(settings) for settings in [base, *others]}) == 4


def test_a_folder_of_the_users_is_built_in_but_nothing_else_is_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert build_index(CORPUS, HashEncoder(), path=mine).path == mine
    assert build_index(OTHER, HashEncoder(), path=mine).settings["corpus"] == OTHER.fingerprint
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("x", encoding="utf-8")
    with pytest.raises(IndexStoreError, match="is not an index"):
        build_index(CORPUS, HashEncoder(), path=precious)
    assert [p.name for p in precious.iterdir()] == ["chapter1.tex"]


def test_a_read_only_cache_means_in_memory_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(index, "one_builder", refuse)
    with caplog.at_level(logging.WARNING):
        found = build_index(CORPUS, HashEncoder(), cache=tmp_path)
    assert found.path is None
    assert "Read-only file system" in caplog.text
    assert "KINJECT_CACHE" in caplog.text
    np.testing.assert_array_equal(found.vectors, HashEncoder().encode_queries([c.text for c in CORPUS.chunks]))
    assert found.key == fingerprint(index_settings(CORPUS, HashEncoder()))


def test_a_full_disk_is_an_error_and_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel reports it: a limit on the size of files is met in the middle of a write, as the disk's end is."""
    monkeypatch.setattr(index, "_FULL", {errno.EFBIG})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(IndexStoreError, match=r"The disk is full: .* Free some space, or set KINJECT_CACHE"):
            build_index(CORPUS, HashEncoder(dimension=100), cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert build_index(CORPUS, HashEncoder(dimension=100), cache=tmp_path).path is not None


def test_a_cache_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(IndexStoreError, match=r"can't be written.*Set KINJECT_CACHE to another folder"):
        build_index(CORPUS, HashEncoder(), cache=tmp_path / "file")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("KINJECT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "lm-eval-kinject"


def test_what_the_cache_holds(tmp_path: Path) -> None:
    assert cached_indexes(tmp_path) == []
    folder = built(tmp_path)
    unfinished = folder.with_name("x.building")
    unfinished.mkdir()
    assert cached_indexes(tmp_path) == sorted([folder, unfinished])


def test_cut_passages_are_counted(tmp_path: Path) -> None:
    corpus = corpus_of(["a", "b cut", "c cut"])
    assert build_index(corpus, HashEncoder(), cache=tmp_path).passages_cut == 2
    assert build_index(corpus, HashEncoder(), cache=tmp_path).passages_cut == 2


def test_info_and_verify_of_what_is_no_index(tmp_path: Path) -> None:
    assert verify_index(tmp_path / "nowhere") == ["there is no such folder"]
    assert "never finished" in verify_index(tmp_path)[0]
    with pytest.raises(IndexStoreError, match="is not an index"):
        index_info(tmp_path)
