"""Random-weight text encoders, a few hundred kilobytes each, in the layouts that real ones have; and one of pure numpy.

For tests that ask whether prefix, pooling and similarity are applied as stated, not whether retrieval is any good.
``HashEncoder`` needs no torch, so that subprocesses that test index building start in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus import Corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.records import Chunk

_VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(chr(c) for c in range(97, 123)),
    *("##" + chr(c) for c in range(97, 123)),
    *"0123456789.,:;!?'-()",
]
SENTENCES = (
    "The council of Dunmarrow opened a new library on 3 March.",
    "A storm closed the harbor of Saltmouth for nine days.",
    "Velda Ashgrove won the regional chess championship.",
    "The copper mine at Wolfreach was sold to Apex Steel.",
    "A rare heron was seen near the marshes of Peatmere.",
    "Tandem Airways cancelled all flights on Tuesday.",
    "The bridge over the river Fen was repainted in green.",
    "Doctors in Holmwick tested a vaccine against river fever.",
)


def corpus_of(texts: Sequence[str], name: str = "tiny") -> Corpus:
    """A corpus with the texts as chunks ``c000``, ``c001``, … and short titles."""
    items = tuple(Chunk(f"c{i:03}", text, title=f"Title {i % 5}") for i, text in enumerate(texts))
    return make_corpus(name, Source(items, "made by a test"))


def tiny_corpus(size: int = 40) -> Corpus:
    """``size`` chunks of one to three sentences; two have the same text, so that there is always a tie."""
    texts = [" ".join(SENTENCES[(i * j + i) % 8] for j in range(1, 2 + i % 3)) + f" Item {i}." for i in range(size)]
    texts[-1] = texts[2]
    return corpus_of(texts)


def _tokenizer() -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={token: i for i, token in enumerate(_VOCABULARY)}, do_lower_case=True)


def make_bert(folder: Path, *, seed: int = 0, positions: int = 256) -> Path:
    """A bare BERT encoder with its tokenizer, as bge, e5, contriever and dragon come."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def make_pair(folder: Path, *, dpr: bool) -> Path:
    """Two encoders in the subfolders ``query`` and ``passage``: DPR's classes, or bare BERTs as dragon's."""
    if not dpr:
        make_bert(folder / "query", seed=1)
        make_bert(folder / "passage", seed=2)
        return folder
    import torch
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

    torch.manual_seed(3)
    config = DPRConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    DPRQuestionEncoder(config).save_pretrained(folder / "query")
    DPRContextEncoder(config).save_pretrained(folder / "passage")
    for half in ("query", "passage"):
        _tokenizer().save_pretrained(folder / half)
    return folder


def make_sentence_transformer(folder: Path, *, similarity: str = "dot") -> Path:
    """A sentence-transformers folder with CLS pooling, a query prompt and a similarity of its own."""
    make_bert(folder, seed=4)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    prompts = {"prompts": {"query": "find: ", "document": "text: "}, "similarity_fn_name": similarity}
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", prompts),
        ("sentence_bert_config.json", {"max_seq_length": 96, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_cross_encoder(folder: Path, *, labels: int = 1, seed: int = 5) -> Path:
    """A BERT with a scoring head, as cross-encoders come; with more than one label it is a classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


class HashEncoder:
    """Vectors from a hash of the text: deterministic, no model. Counts what it embeds; may sleep before each call."""

    def __init__(self, name: str = "hash", dimension: int = 8, delay: float = 0.0) -> None:
        self.settings: dict[str, Any] = {"name": name, "dimension": dimension}
        self.device = "cpu"
        self.queries_cut = 0
        self.embedded = 0
        self._dimension = dimension
        self._delay = delay

    def encode_queries(self, texts: Sequence[str]) -> Any:
        seeds = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts)
        rows = [np.random.default_rng(seed).standard_normal(self._dimension) for seed in seeds]
        return np.array(rows, dtype=np.float32)

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Any, int]:
        time.sleep(self._delay)
        self.embedded += len(chunks)
        return self.encode_queries([chunk.text for chunk in chunks]), sum("cut" in chunk.text for chunk in chunks)

    def reads(self, chunk: Chunk) -> str:
        return chunk.text


def hash_encoder(device: str, delay: float = 0.0) -> HashEncoder:
    """As a process that helps to build an index loads it."""
    encoder = HashEncoder(delay=delay)
    encoder.device = device
    return encoder
