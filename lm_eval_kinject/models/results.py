"""What a run says about itself in lm_eval's results: provenance, and how well retrieval did.

What it is for: `figures` turns marks on requests into recall, MRR and budget figures per task; `model_identity` names
the weights that were scored; `check_complete` refuses to start scoring while something has no name. What it does not
do: it measures no accuracy (lm_eval does).

The one idea: everything is plain JSON under one key, ``config.kinject``, which lm_eval merges into its results after
the evaluation (it asks ``get_model_info`` last).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_kinject.errors import KinjectError, ProvenanceError
from lm_eval_kinject.provenance import fingerprint, fingerprint_file
from lm_eval_kinject.records import Hit, gold_ids
from lm_eval_kinject.retrieval.library import DEPTH

if TYPE_CHECKING:
    from lm_eval_kinject.models.prompts import Written

__all__ = ["Figure", "check_complete", "figure_of", "figures", "model_identity", "ties"]

_CUTOFFS = (1, 3, DEPTH)
_WHOLE = 64 << 20  # files up to 64 MiB are fingerprinted whole
_EDGE = 1 << 20  # of larger ones the first and last MiB, and the size
_RECORDS = ("kinject.json", "trials.json")  # what our trainer says of a run: times, which load nothing
_WEIGHTS_AND_SETTINGS = (".safetensors", ".bin", ".json", ".model", ".jinja", ".txt", ".gguf", ".pt")


@dataclass(frozen=True, slots=True)
class Figure:
    """One question's share in the figures.

    ``gold_rank`` counts from 1, ``retrieved_rank`` is the same before the hits were ranked again; None: not among the
    hits looked at. ``has_gold``: whether there is a gold chunk, ``gold_used``: whether it stands in the prompt. A
    question that takes several chunks has them when it has all: its rank is that of the last. ``corpus`` is its
    fingerprint.
    """

    task: str
    doc_id: int
    corpus: str
    has_gold: bool
    gold_rank: int | None
    gold_used: bool
    dropped: int
    truncated: bool
    context_tokens: int
    retrieved_rank: int | None = None


def figure_of(instance: Any, written: Written) -> Figure:
    """Returns the figures of one question, from the mark on one of its Instances."""
    trace = written.trace
    gold = gold_ids(trace.gold)
    rank, retrieved = (_rank_of_all(gold, hits) for hits in (written.hits, written.retrieved))
    return Figure(
        task=str(instance.task_name),
        doc_id=-1 if instance.doc_id is None else int(instance.doc_id),
        corpus=written.corpus,
        has_gold=bool(gold),
        gold_rank=rank,
        gold_used=bool(gold) and set(gold) <= set(trace.used),
        dropped=len(trace.dropped),
        truncated=trace.truncated is not None,
        context_tokens=trace.context_tokens,
        retrieved_rank=retrieved,
    )


def _rank_of_all(gold: Sequence[str], hits: Sequence[Hit]) -> int | None:
    """The rank by which all gold chunks have come; None where one of them isn't among the hits."""
    ranks = [hit.rank for hit in hits if hit.chunk.id in gold]
    return max(ranks) if gold and len(ranks) == len(gold) else None


def figures(of: Iterable[Figure], k: int, *, ranked: bool = True, reranked: int = 0) -> dict[str, dict[str, Any]]:
    """Returns, per task, retrieval and budget figures over its questions, and the fingerprint of its corpus.

    ``recall@n`` is the share of questions whose source chunk is among the first n hits, ``mrr`` the mean of 1/rank
    (0 where it isn't among the ``mrr_depth`` hits looked at), ``gold_in_prompt`` the share of questions whose source
    chunk is still there after the budget. All are taken over the questions that name a source chunk
    (``questions_with_gold``) and left out where none does. Of a question that takes several chunks all must be there:
    among the first n, in the prompt; its rank is that of the last of them. Without ``ranked``, as of
    ``retriever=full``, there is no rank to speak of and only ``gold_in_prompt`` is given. Where ``reranked`` hits of
    each question were ranked again, these figures are of the new ranks, and ``retrieved_recall@n`` and
    ``retrieved_mrr`` of the retriever's.
    """
    tasks: dict[str, list[Figure]] = {}
    for one in of:
        tasks.setdefault(one.task, []).append(one)
    return {task: _figures(found, k, ranked, reranked) for task, found in sorted(tasks.items())}


def _figures(found: Sequence[Figure], k: int, ranked: bool, reranked: int) -> dict[str, Any]:
    gold = [f for f in found if f.has_gold]
    result: dict[str, Any] = {"corpus": found[0].corpus, "questions": len(found), "questions_with_gold": len(gold)}
    if gold:
        result["gold_in_prompt"] = sum(f.gold_used for f in gold) / len(gold)
    if gold and ranked:
        result |= _of_ranks([f.gold_rank for f in gold], k)
        result["mrr_depth"] = max(k, DEPTH, reranked)
        if reranked:
            before = _of_ranks([f.retrieved_rank for f in gold], k)
            result |= {f"retrieved_{name}": value for name, value in before.items()}
    result["chunks_dropped"] = sum(f.dropped for f in found)
    result["questions_with_dropped_chunks"] = sum(f.dropped > 0 for f in found)
    result["chunks_truncated"] = sum(f.truncated for f in found)
    result["mean_context_tokens"] = sum(f.context_tokens for f in found) / len(found)
    return result


def _of_ranks(ranks: Sequence[int | None], k: int) -> dict[str, float]:
    """Recall and MRR; None is a rank beyond all that were looked at."""
    found = {n: sum(rank is not None and rank <= n for rank in ranks) for n in sorted({*_CUTOFFS, k})}
    recall = {f"recall@{n}": count / len(ranks) for n, count in found.items()}
    return {**recall, "mrr": sum(1 / rank for rank in ranks if rank is not None) / len(ranks)}


def ties(requests: Iterable[Any], answers: Iterable[Any]) -> dict[tuple[str, int], bool]:
    """Says of each multiple-choice question whether its best option shares its log-likelihood with another one.

    lm_eval gives such a tie to the first of them; counted, it is seen. Requests with an empty context (mutual
    information) and questions of one request don't count; a request that comes twice counts once.
    """
    scores: dict[tuple[str, int], dict[int, float]] = {}
    for request, answer in zip(requests, answers, strict=True):
        if request.args[0] != "":
            key = (str(request.task_name), -1 if request.doc_id is None else int(request.doc_id))
            scores.setdefault(key, {})[request.idx] = answer[0]
    options = {key: list(found.values()) for key, found in scores.items() if len(found) > 1}
    return {key: found.count(max(found)) > 1 for key, found in options.items()}


# Who was scored -------------------------------------------------------------------------------------------------------


def model_identity(name: Any, *, commit: str | None, revision: str | None) -> dict[str, Any]:
    """Names a model or adapter so that somebody else can tell whether theirs is the same.

    Args:
        name: a folder, a Hub id, or an object in memory (named by its class; it has no revision).
        commit: of the Hub, if whoever loaded it knows.
        revision: as asked for.

    Returns:
        ``name`` (never a path: a folder's own name) with ``commit``, or with ``fingerprint`` and how it was taken.
        ``commit`` is None where it couldn't be found out.
    """
    if not isinstance(name, str):
        return {"name": type(name).__name__, "fingerprint": "an object in memory", "method": "none"}
    folder = Path(name).expanduser()
    if folder.is_dir():
        digest, method = _folder_fingerprint(folder)
        return {"name": folder.resolve().name, "fingerprint": digest, "method": method}
    return {"name": name, "revision": revision, "commit": commit or _commit(name, revision)}


def _folder_fingerprint(folder: Path) -> tuple[str, str]:
    entries: dict[str, Any] = {}
    sampled = False
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.suffix not in _WEIGHTS_AND_SETTINGS or file.name in _RECORDS:
            continue
        size = file.stat().st_size
        if size <= _WHOLE:
            entries[file.name] = fingerprint_file(file)
        else:
            sampled = True
            entries[file.name] = [size, _edges(file, size)]
    method = "sizes, first and last MiB of files over 64 MiB, other files whole" if sampled else "files whole"
    return fingerprint(entries), method


def _edges(file: Path, size: int) -> str:
    with file.open("rb") as handle:
        head = handle.read(_EDGE)
        handle.seek(size - _EDGE)
        return hashlib.sha256(head + handle.read(_EDGE)).hexdigest()


def _commit(name: str, revision: str | None) -> str | None:
    from lm_eval_kinject.hub.fetch import fetch_snapshot

    try:
        return fetch_snapshot(name, kind="model", revision=revision, patterns=["*config.json"]).commit
    except KinjectError:
        return None  # `check_complete` says what is missing and what to do


_NOTED_ELSEWHERE = frozenset({"pretrained", "revision", "peft", "delta", "tokenizer"})
_MECHANICS = frozenset(
    {
        "batch_size", "cache_dir", "device", "device_map", "disable_mmap", "force_download", "local_files_only",
        "logits_cache", "low_cpu_mem_usage", "max_batch_size", "max_cpu_memory", "max_memory", "max_memory_per_gpu",
        "offload_buffers", "offload_folder", "offload_state_dict", "parallelize", "proxies", "tp_plan", "tp_size",
        "use_cache", "weights_only",
    }
)  # fmt: skip
"""Arguments of ``hf`` that say where and how fast, and not what, is computed."""


def loading(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """How weights and tokenizer are read where that isn't as usual: dtype, quantisation, subfolder and so on.

    Args:
        given: arguments of lm_eval's ``hf``.
        usual: its defaults.

    Returns:
        Name -> plain value without a path; an object is named by its class.
    """
    left_out = _NOTED_ELSEWHERE | _MECHANICS
    return {
        name: _plain(value)
        for name, value in sorted(given.items())
        if name not in left_out and value != usual.get(name)
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~", ".")) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    text = str(value)
    return text.removeprefix("torch.") if text.startswith("torch.") else type(value).__name__


def check_complete(provenance: Mapping[str, Any], *, retrieves: bool) -> None:
    """Makes sure that nothing that a result must name is missing.

    Args:
        provenance: what the result will say.
        retrieves: whether text is retrieved; without, what was scored and on what is all there is to name.

    Raises:
        ProvenanceError: naming everything that is.
    """
    required = {
        "model": ("name",),
        "prompt": ("query", "placement", "order", "fusion", "context_template"),
        "corpora": (),
        "retrievers": (),
        "seeds": ("retriever",),
        "environment": ("python", "packages"),
    }
    if not retrieves:
        required = {part: required[part] for part in ("model", "environment")}
    missing = [
        f"{part}.{name}" if name else part
        for part, names in required.items()
        for name in (names or ("",))
        if (not provenance.get(part) if not name else (provenance.get(part) or {}).get(name) is None)
    ]
    for part in ("model", "peft", "delta", "tokenizer"):
        found = provenance.get(part)
        if found and not (found.get("commit") or found.get("fingerprint")):
            missing.append(f"{part}.commit (of {found.get('name')})")
    for corpus in provenance.get("corpora") or ():
        missing += [f"corpora.{corpus.get('name')}.{n}" for n in ("fingerprint", "chunking") if not corpus.get(n)]
    for retriever in provenance.get("retrievers") or ():
        missing += [f"retrievers.{retriever.get('name')}.{n}" for n in ("fingerprint",) if not retriever.get(n)]
    if missing:
        raise ProvenanceError(
            f"Scoring doesn't start, as the result couldn't name {', '.join(missing)}. Pin what has no commit with "
            "revision= (or retriever_revision=), or use a folder on this disk, which is named by its content."
        )
