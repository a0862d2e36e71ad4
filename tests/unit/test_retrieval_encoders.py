"""Prefix, title, pooling and similarity of the known encoders, against transformers called by hand."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import corpus_of, make_bert, make_pair, make_sentence_transformer
from transformers import AutoModel, AutoTokenizer, DPRContextEncoder, DPRQuestionEncoder

from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval.encoders import KNOWN, load_encoder

INSTRUCTION = "Represent this sentence for searching relevant passages: "
# SPEC: (query prefix, passage prefix, pooling, cosine)
RULES = {
    "minilm": ("", "", "mean", True),
    "bge": (INSTRUCTION, "", "cls", True),
    "bge-large-en": (INSTRUCTION, "", "cls", True),
    "mxbai": (INSTRUCTION, "", "cls", True),
    "e5": ("query: ", "passage: ", "mean", True),
    "contriever": ("", "", "mean", False),
}
QUESTION = "Who was seen near the marshes?"
CHUNKS = [Chunk("a", "A heron was seen.", title="Peatmere"), Chunk("b", "The bridge over the river Fen is green now.")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


def embed(folder: Path, text: str, pooling: str, unit: bool) -> np.ndarray:
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]
    vector = states[0] if pooling == "cls" else states.mean(0)
    return np.asarray(vector / vector.norm() if unit else vector)


@pytest.mark.parametrize("name", RULES)
def test_single_encoders(name: str, bert: Path) -> None:
    query_prefix, passage_prefix, pooling, cosine = RULES[name]
    encoder = load_encoder(name, spec=KNOWN[name], model=str(bert), device="cpu")
    question = encoder.encode_queries([QUESTION, "x"])[0]
    passages, cut = encoder.encode_passages(CHUNKS)
    assert cut == 0
    np.testing.assert_allclose(question, embed(bert, query_prefix + QUESTION, pooling, cosine), atol=2e-6)
    for vector, chunk in zip(passages, CHUNKS, strict=True):
        np.testing.assert_allclose(vector, embed(bert, passage_prefix + chunk.text, pooling, cosine), atol=2e-6)
    other = {"cls": "mean", "mean": "cls"}[pooling]
    assert np.abs(question - embed(bert, query_prefix + QUESTION, other, cosine)).max() > 1e-2


def test_dragon_reads_questions_and_passages_with_two_models(tmp_path: Path) -> None:
    make_pair(tmp_path, dpr=False)
    encoder = load_encoder("dragon", spec=KNOWN["dragon"], model=str(tmp_path), device="cpu")
    expected = embed(tmp_path / "query", QUESTION, "cls", False)
    np.testing.assert_allclose(encoder.encode_queries([QUESTION])[0], expected, atol=2e-6)
    expected = embed(tmp_path / "passage", CHUNKS[0].text, "cls", False)
    np.testing.assert_allclose(encoder.encode_passages(CHUNKS)[0][0], expected, atol=2e-6)


def test_dpr_reads_title_and_text_with_its_own_classes(tmp_path: Path) -> None:
    make_pair(tmp_path, dpr=True)
    encoder = load_encoder("dpr", spec=KNOWN["dpr"], model=str(tmp_path), device="cpu")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "passage")
    with torch.no_grad():
        ids = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
        question = DPRQuestionEncoder.from_pretrained(tmp_path / "query")(ids).pooler_output[0]
        ids = tokenizer("Peatmere [SEP] A heron was seen.", return_tensors="pt")["input_ids"]
        passage = DPRContextEncoder.from_pretrained(tmp_path / "passage")(ids).pooler_output[0]
    np.testing.assert_allclose(encoder.encode_queries([QUESTION])[0], question, atol=2e-6)
    np.testing.assert_allclose(encoder.encode_passages(CHUNKS)[0][0], passage, atol=2e-6)


def test_any_other_model_brings_its_own_prompts_pooling_and_similarity(tmp_path: Path) -> None:
    folder = make_sentence_transformer(tmp_path / "dot")
    encoder = load_encoder(str(folder), spec=None, device="cpu")
    assert encoder.settings["similarity"] == "dot"
    expected = embed(folder, "find: " + QUESTION, "cls", False)
    np.testing.assert_allclose(encoder.encode_queries([QUESTION])[0], expected, atol=2e-6)
    expected = embed(folder, "text: " + CHUNKS[1].text, "cls", False)
    np.testing.assert_allclose(encoder.encode_passages(CHUNKS)[0][1], expected, atol=2e-6)
    cosine = load_encoder("x", spec=None, model=str(make_sentence_transformer(tmp_path / "c", similarity="cosine")))
    np.testing.assert_allclose(np.linalg.norm(cosine.encode_queries([QUESTION]), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["minilm", "bge", "contriever", "dpr"])
def test_openvino_gives_what_torch_gives(name: str, bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = str(make_pair(tmp_path, dpr=True) if name == "dpr" else bert)
    by_torch = load_encoder(name, spec=KNOWN[name], model=model, device="cpu")
    by_openvino = load_encoder(name, spec=KNOWN[name], model=model, backend="openvino")
    chunks = [*CHUNKS, Chunk("c", "A heron. " * 60), Chunk("d", "")]  # of many lengths, so that most are padded
    np.testing.assert_allclose(by_openvino.encode_passages(chunks)[0], by_torch.encode_passages(chunks)[0], atol=1e-5)
    np.testing.assert_allclose(by_openvino.encode_queries([QUESTION]), by_torch.encode_queries([QUESTION]), atol=1e-5)
    assert by_openvino.settings == {**by_torch.settings, "backend": "openvino"}
    assert "backend" not in by_torch.settings  # so that indexes of before there was a choice are still found


_SIGNALLED = """
import os, signal, sys
from lm_eval_kinject.retrieval.encoders import KNOWN, load_encoder
first, second = (load_encoder("minilm", spec=KNOWN["minilm"], model=sys.argv[1], backend="openvino") for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_openvino(bert: Path) -> None:
    """It leaves a freed signal stack where models end in the order in which they began."""
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, str(bert)], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr[-2000:]


def test_openvino_in_bfloat16_is_near_or_refused(bert: Path) -> None:
    openvino = pytest.importorskip("openvino")
    exact = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), device="cpu").encode_passages(CHUNKS)[0]
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(RetrievalError, match="this processor has no bfloat16"):
            load_encoder("bge", spec=KNOWN["bge"], model=str(bert), dtype="bfloat16", backend="openvino")
        return
    encoder = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), dtype="bfloat16", backend="openvino")
    rough = encoder.encode_passages(CHUNKS)[0]
    assert (encoder.settings["dtype"], rough.dtype) == ("bfloat16", np.float32)
    assert (rough * exact).sum(axis=1).min() > 0.99
    assert np.abs(rough - exact).max() > 1e-5  # it was rounded


def test_static_is_the_mean_of_distilled_word_pieces(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skeletoken")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    from lm_eval_kinject.retrieval import static

    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path))
    encoder = load_encoder("static", spec=KNOWN["static"], model=str(bert))
    (folder,) = (tmp_path / "static").iterdir()
    table, tokenizer = load_file(folder / "model.safetensors"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for chunk, vector in zip(CHUNKS, encoder.encode_passages(CHUNKS)[0], strict=True):
        encoded = tokenizer.encode(chunk.text, add_special_tokens=False)
        ids = [id_ for id_, token in zip(encoded.ids, encoded.tokens, strict=True) if token != "[UNK]"]
        expected = sum(table["weights"][i] * table["embeddings"][i] for i in ids)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert str(tmp_path) not in str(encoder.settings)
    assert encoder.encode_passages([Chunk("long", "A heron. " * 999)])[1] == 0  # nothing is cut
    with monkeypatch.context() as patched:  # it is distilled once
        patched.setattr(static, "_distil", None)
        again = load_encoder("static", spec=KNOWN["static"], model=str(bert))
    assert again.settings == encoder.settings
    np.testing.assert_array_equal(again.encode_queries([QUESTION]), encoder.encode_queries([QUESTION]))
    (folder / "config.json").write_text("{}", encoding="utf-8")  # damaged: made anew
    assert load_encoder("static", spec=KNOWN["static"], model=str(bert)).settings == encoder.settings


def test_similarities_that_no_inner_product_gives_are_refused(tmp_path: Path) -> None:
    folder = make_sentence_transformer(tmp_path / "far", similarity="euclidean")
    with pytest.raises(RetrievalError, match="its similarity is euclidean"):
        load_encoder(str(folder), spec=None, device="cpu")


def test_long_texts_are_cut_at_what_the_model_reads_and_counted(bert: Path) -> None:
    encoder = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), device="cpu")
    assert encoder.settings["max_tokens"] == 256  # what the model has, below the 512 of the table
    body = "abc " * 300
    vectors, cut = encoder.encode_passages([Chunk("a", body), Chunk("b", body + "zz"), Chunk("c", "abc")])
    assert cut == 2
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    encoder.encode_queries([body, "short"])
    assert encoder.queries_cut == 1


def test_batches_do_not_change_vectors(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_kinject.retrieval import encoders

    encoder = load_encoder("e5", spec=KNOWN["e5"], model=str(bert), device="cpu")
    texts = ["word " * n for n in range(1, 30)]
    together = encoder.encode_queries(texts)
    monkeypatch.setitem(encoders._TOKENS_A_BATCH, "cpu", 1)  # one text a batch: no padding at all
    np.testing.assert_allclose(encoder.encode_queries(texts), together, atol=1e-5)


def test_bfloat16_is_close_recorded_and_comes_out_as_float32(bert: Path) -> None:
    exact = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), device="cpu")
    rough = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), dtype="bfloat16", device="cpu")
    assert (exact.settings["dtype"], rough.settings["dtype"]) == ("float32", "bfloat16")
    one, other = exact.encode_queries([QUESTION]), rough.encode_queries([QUESTION])
    assert other.dtype == np.float32
    assert np.linalg.norm(other) == pytest.approx(1, abs=1e-6)
    assert 0 < 1 - float((one * other).sum()) < 0.01


def test_no_text_gives_no_vector(bert: Path) -> None:
    encoder = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), device="cpu")
    assert encoder.encode_passages([])[0].shape[0] == 0


# What can be wrong with a model --------------------------------------------------------------------------------------


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_bert(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.1" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RetrievalError, match=r"lacks \d+ weights"):
        load_encoder("bge", spec=KNOWN["bge"], model=str(folder), device="cpu")


def test_a_passage_encoder_is_no_question_encoder(tmp_path: Path) -> None:
    make_pair(tmp_path, dpr=True)
    (tmp_path / "query").rename(tmp_path / "old")
    (tmp_path / "passage").rename(tmp_path / "query")
    (tmp_path / "old").rename(tmp_path / "passage")
    with pytest.raises(RetrievalError, match="not a DPRQuestionEncoder checkpoint"):
        load_encoder("dpr", spec=KNOWN["dpr"], model=str(tmp_path), device="cpu")


def test_a_pair_needs_both_halves(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="subfolders `query` and `passage`"):
        load_encoder("dpr", spec=KNOWN["dpr"], model=str(tmp_path), device="cpu")
    with pytest.raises(RetrievalError, match="QUERY_COMMIT:PASSAGE_COMMIT"):
        load_encoder("dpr", spec=KNOWN["dpr"], revision="abc", device="cpu")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    for spec in (KNOWN["bge"], None):
        with pytest.raises(RetrievalError, match="can't be loaded"):
            load_encoder("bge", spec=spec, model=str(tmp_path), device="cpu")


def test_weights_that_were_cut_off_are_named(tmp_path: Path) -> None:
    folder = make_sentence_transformer(tmp_path / "cut")
    weights = next(folder.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    for spec in (KNOWN["bge"], None):
        with pytest.raises(RetrievalError, match="can't be loaded"):
            load_encoder("x", spec=spec, model=str(folder), device="cpu")


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    import json

    folder = make_sentence_transformer(tmp_path / "code")
    (folder / "mine.py").write_text("raise SystemExit('this ran')\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config.update(auto_map={"AutoModel": "mine.Mine", "AutoConfig": "mine.Config"}, model_type="mine")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for spec in (KNOWN["bge"], None):
        with pytest.raises(RetrievalError, match="can't be loaded"):
            load_encoder("x", spec=spec, model=str(folder), device="cpu")


@pytest.mark.parametrize("name", ["bge", "dpr", "someone/some-model"])
def test_an_unreachable_model_names_itself_and_what_works_offline(name: str) -> None:
    with pytest.raises(RetrievalError) as caught:
        load_encoder(name, spec=KNOWN.get(name), device="cpu")
    message = str(caught.value)
    assert (KNOWN[name].query_model if name in KNOWN else name) in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "retriever=minilm" in message
    assert "retriever=bm25" in message


def test_a_plain_transformer_is_used_with_a_warning(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_encoder(str(bert), spec=None, device="cpu")
    assert "mean pooling and no prefixes are assumed" in caplog.text


def test_a_chunk_reads_with_its_title_for_dpr_only(tmp_path: Path, bert: Path) -> None:
    one, other = corpus_of(["same", "same"]).chunks
    dpr = load_encoder("dpr", spec=KNOWN["dpr"], model=str(make_pair(tmp_path, dpr=True)), device="cpu")
    bge = load_encoder("bge", spec=KNOWN["bge"], model=str(bert), device="cpu")
    assert dpr.reads(one) != dpr.reads(other)
    assert bge.reads(one) == bge.reads(other)
