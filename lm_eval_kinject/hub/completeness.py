"""Whether somebody else could rerun a result: what `gaps` lists is missing, and such a result isn't submitted.

What it is for: a list, in words, of what lm_eval's results (with our provenance in them) don't say, or name so that
only this disk has it. What it does not do: it asks no Hub whether what is named is still there, and it reruns nothing.

The one idea: a fingerprint says whether two things are the same, and gives nothing to anybody. So whatever was scored
with must also have a place where others get it: a Hub repository at a commit, or this package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lm_eval_kinject.hub.eval_results import Results
from lm_eval_kinject.hub.run import BUNDLED_CORPUS, HUB_CORPUS

__all__ = ["gaps"]

_PROMPT = ("query", "placement", "order", "fusion")


def gaps(results: Results, *, samples: bool) -> list[str]:
    """What a result lacks before somebody else can rerun it; empty where nothing is missing.

    Args:
        results: as read.
        samples: whether the samples of every task must be there.
    """
    kinject, missing = results.kinject, []
    if not kinject:
        return ["config.kinject: score with --model rag-hf (k=0 is lm_eval's hf to the bit), which notes what was used"]
    for part in ("model", "peft", "delta", "tokenizer"):
        found = kinject.get(part)
        if part in kinject and not (found or {}).get("commit"):
            name = (found or {}).get("name")
            missing.append(
                f"kinject.{part}.commit: {name} has none; push it (`kinject push`) and score it by its Hub id"
            )
    if "model" not in kinject:
        missing.append("kinject.model: which model was scored")
    if kinject.get("k"):
        missing += _retrieval_gaps(kinject)
    for name in ("lm_eval_version", "date", "n-samples", "versions"):
        if not results.data.get(name):
            missing.append(f"{name}: written by lm_eval; has the file been edited?")
    if not (kinject.get("environment") or {}).get("packages"):
        missing.append("kinject.environment.packages")
    limited = [t for t, n in (results.data.get("n-samples") or {}).items() if n.get("effective") != n.get("original")]
    missing += [f"all questions of {task}: it was run with --limit; run it without" for task in limited]
    if samples:
        lacking = [t for t in results.data.get("n-samples") or {} if t not in results.samples]
        missing += [
            f"the samples of {task}: run with --log_samples and leave the files side by side" for task in lacking
        ]
    return missing


def _retrieval_gaps(kinject: Mapping[str, Any]) -> list[str]:
    missing = []
    if not kinject.get("corpora"):
        missing.append("kinject.corpora: which corpus was searched")
    for corpus in kinject.get("corpora") or ():
        missing += [f"kinject.corpora.{corpus.get('name')}.fingerprint"] if not corpus.get("fingerprint") else []
        missing += _corpus_gaps(corpus)
    if not kinject.get("retrievers"):
        missing.append("kinject.retrievers: what searched it")
    for retriever in kinject.get("retrievers") or ():
        missing += (
            [f"kinject.retrievers.{retriever.get('name')}.fingerprint"] if not retriever.get("fingerprint") else []
        )
        missing += _encoder_gaps(retriever)
    missing += [f"kinject.prompt.{n}" for n in _PROMPT if n not in (kinject.get("prompt") or {})]
    return missing


def _corpus_gaps(corpus: Mapping[str, Any]) -> list[str]:
    """A fingerprint names a corpus but gives it to nobody: it must be on the Hub at a commit, or in this package."""
    source, place = str(corpus.get("source") or ""), f"kinject.corpora.{corpus.get('name')}"
    if source.startswith(BUNDLED_CORPUS) or (source.startswith(HUB_CORPUS) and _is_commit(corpus.get("revision"))):
        return []
    if source.startswith(HUB_CORPUS):
        return [f"{place}.revision: no commit of that data set; score with corpus=OWNER/NAME@COMMIT"]
    push = "push it (`kinject push FOLDER --as dataset`) and score with corpus=OWNER/NAME"
    return [f"{place}: nobody else has it ({source or 'its source is not said'}); {push}"]


def _encoder_gaps(retriever: Mapping[str, Any]) -> list[str]:
    """The same for the models that embed; those without any, such as bm25, come with this package."""
    encoder = retriever.get("encoder") or {}
    local = {
        str(model.get("folder") or model.get("repo") or "a model")
        for model in (encoder.get("query_model"), encoder.get("passage_model"))
        if isinstance(model, Mapping) and "package" not in model and not _is_commit(model.get("commit"))
    }
    place = f"kinject.retrievers.{retriever.get('name')}.encoder"
    return [f"{place}: {name} is on no Hub at a commit; push it and score with its Hub id" for name in sorted(local)]


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None
