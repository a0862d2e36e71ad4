"""Retrieval for any of lm_eval's language models: the mixin behind the model types ``rag-…``.

What it is for: `RagMixin` goes before one of lm_eval's model classes and gives it our arguments, retrieved text in the
prompts of ``loglikelihood`` and ``generate_until``, and provenance in the results. What it does not do: it computes no
log-likelihood itself; that is the host class's work, or the shared-prefix scorer's.

The one idea: with ``k=0`` every method hands its arguments on untouched, so that the result has the same bits as the
host class's own; everything else lives in `PromptWriter`.
"""

from __future__ import annotations

import errno
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.hub.registry import READER, ResolvedAdapter, check_base, resolve
from lm_eval_kinject.log import log
from lm_eval_kinject.models import task_hook
from lm_eval_kinject.models.arguments import WHERE, split
from lm_eval_kinject.models.prompts import Library, PromptWriter, clock, mark_on
from lm_eval_kinject.models.results import (
    Figure,
    check_complete,
    figure_of,
    figures,
    loading,
    model_identity,
    ties,
)
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import environment

__all__ = ["RagMixin"]


_COMPANIONS = ("peft", "delta", "tokenizer")
_REAL_MODEL = "Qwen/Qwen3-0.6B-Base"


class RagMixin:
    """Mixed in before a subclass of lm_eval's ``HFLM``.

    Args:
        pretrained: as ``hf`` takes it; default: the embedded reader.
        **arguments: all of the host class's, and those of `RagArguments`.

    Raises:
        ArgumentError: an argument is unknown, unsound or contradicts another; nothing has been loaded then.
        CorpusError: ``corpus=`` can't be loaded; no model has been loaded then.
        ModelError: the language model can't be reached.
        ProvenanceError: it can't be named (what is retrieved from and how is checked before the first score).
    """

    host_class: Any
    """The class of lm_eval that is mixed into; a subclass names it."""

    # what the host class has after its __init__
    backend: str
    config: Any
    device: Any
    gather_object: Callable[..., Any]
    max_gen_toks: int
    max_length: int
    pretrained: Any
    revision: str | None
    tok_encode: Callable[..., list[int]]
    tokenizer: Any

    def __init__(self, pretrained: Any = None, **arguments: Any) -> None:
        if pretrained is not None:
            arguments["pretrained"] = pretrained
        parameters = inspect.signature(self.host_class.__init__).parameters.values()
        names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
        parted = split(arguments, names)
        self.rag = parted.rag
        self._written: dict[tuple[str, int], Figure] = {}
        self._ties: dict[tuple[str, int], bool] = {}
        self._seconds: dict[str, float] = {}
        self._reported = False
        self._scorer: Any = None
        self._adapter: ResolvedAdapter | None = None
        hf = self._completed(parted.hf)
        library = Library(self.rag, "cpu", self._seconds)
        if self.rag.k > 0 and self.rag.corpus is not None:
            library.corpus(self.rag.corpus)  # what is wrong with it is found before the model is loaded
        usual = {p.name: p.default for p in parameters}
        self._loading = loading(hf, usual)
        # Looked up now and once: a name on the Hub can mean another commit after the evaluation.
        self._companions = {
            part: model_identity(hf[part], commit=None, revision=hf.get("revision", usual.get("revision")))
            for part in _COMPANIONS
            if hf.get(part)
        }
        self._load(hf)
        library.device = str(self.device)
        self._library = library
        self._writer = PromptWriter(self.rag, self, library)
        if self.rag.k > 0:
            task_hook.install()
        if self.rag.scorer == "shared":
            from lm_eval_kinject.scoring import SharedPrefixScorer

            self._scorer = SharedPrefixScorer(self)
        check_complete(self.provenance(), retrieves=False)

    # Loading --------------------------------------------------------------------------------------------------------

    def _completed(self, hf: dict[str, Any]) -> dict[str, Any]:
        """Fills in the embedded reader, and a device that this machine has (``hf`` assumes CUDA)."""
        import torch

        if self.rag.adapter is not None:
            self._put_on(hf, self.rag.adapter)
        if hf.get("pretrained") is None:
            hf["pretrained"] = _embedded_reader()
        if "device" not in hf and isinstance(hf["pretrained"], str) and not torch.cuda.is_available():
            hf["device"] = "mps" if torch.backends.mps.is_available() else "cpu"
        return hf

    def _put_on(self, hf: dict[str, Any], name: str) -> None:
        """Replaces ``adapter=`` by what ``hf`` understands: a checked folder, and its base where none is given."""
        found = self._adapter = resolve(name)
        if not found.adapter and hf.get("pretrained") is not None:
            raise ArgumentError(f"adapter={name} is a whole model, in the place of pretrained=; remove one", WHERE)
        if not found.adapter:
            hf["pretrained"] = str(found.path)
            return
        if hf.get("pretrained") is None and found.base != READER:
            hf["pretrained"] = found.base
        check_base(found, hf.get("pretrained"))
        if hf.get("pretrained") == found.base and found.base_revision and not Path(found.base).is_dir():
            _pin(hf, found)
        hf["peft"] = str(found.path)

    def _load(self, hf: dict[str, Any]) -> None:
        name = hf["pretrained"]
        try:
            super().__init__(**hf)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ModelError(
                    f"The disk is full, so {name} can't be downloaded. Make room, or set HF_HOME to a larger disk."
                ) from error
            raise ModelError(_unreachable(hf, str(error))) from error
        except RuntimeError as error:
            if hf.get("peft") and "size mismatch" in str(error):
                raise ModelError(_misfit(hf, "its matrices have other shapes than the base's modules")) from error
            raise
        except ValueError as error:
            if hf.get("peft") and "not found in the base model" in str(error):
                raise ModelError(_misfit(hf, str(error).split(". ")[0])) from error
            if "adapter_config.json" in str(error) or "Unrecognized model" in str(error):
                raise ModelError(_unreachable(hf, str(error))) from error
            raise

    # What lm_eval calls ---------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Scores continuations, with retrieved text in their contexts; see lm_eval's ``LM.loglikelihood``."""
        return self._answer("loglikelihood", requests, kwargs)

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        """Generates, with retrieved text in the contexts; see lm_eval's ``LM.generate_until``."""
        return self._answer("generate_until", requests, kwargs)

    def _answer(self, method: str, requests: list[Any], kwargs: dict[str, Any]) -> Any:
        host = getattr(super(), method)
        if self._reported:  # a new evaluation with the same model object
            self._written.clear()
            self._ties.clear()
            self._seconds.clear()
            self._reported = False
        bare = requests
        if self.rag.k > 0:
            marks = self._writer.write(requests)
            if marks:
                check_complete(self.provenance(), retrieves=True)
            self._note(marks, requests)
            bare = [self._writer.bare(request) for request in requests]
        with clock(self._seconds, "scoring"):
            answers = host(bare, **kwargs)
        if method == "loglikelihood":
            for part in self.gather_object(ties(requests, answers)) or ():
                self._ties.update(part)
        return answers

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Takes the shared-prefix scorer, but for windows of rolling text (they have no key and share nothing)."""
        if self._scorer is None or override_bs is not None:
            more = {} if override_bs is None else {"override_bs": override_bs}
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, **more)  # type: ignore[misc]
        return self._scorer.loglikelihood(requests, disable_tqdm=disable_tqdm)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders messages, and with ``k > 0`` remembers them: the text goes into one of them later."""
        prompt = self.render(chat_history, add_generation_prompt)
        if self.rag.k > 0:
            self._writer.remember(prompt, chat_history, add_generation_prompt)
        return prompt

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes lm_eval's answer cache for ``k=0`` and refuses it otherwise.

        Raises:
            ArgumentError: ``--use_cache`` with ``k > 0``.
        """
        if self.rag.k > 0 and getattr(cache_hook, "dbdict", None) is not None:
            raise ArgumentError(
                f"--use_cache with k={self.rag.k}: lm_eval looks an answer up by the prompt without retrieved text, "
                "stores it under the prompt with it, and keeps neither model nor corpus in the key (its issues 2715 "
                "and 4063), so answers of another run would be returned; remove --use_cache, or pass k=0",
                "the command",
            )
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its results, after the evaluation: the host's, and ours as ``kinject``."""
        info: dict[str, Any] = super().get_model_info()  # type: ignore[misc]
        tasks = figures(self._written.values(), self.rag.k, ranked=self.rag.retriever != "full")
        questions = Counter(task for task, _ in self._ties)
        tied = Counter(task for (task, _), is_tied in self._ties.items() if is_tied)
        for task, count in questions.items():
            tasks.setdefault(task, {"questions": count})["tied_questions"] = tied[task]
        info["kinject"] = {
            **self.provenance(),
            "tasks": tasks,
            "seconds": {stage: round(passed, 3) for stage, passed in self._seconds.items()},
        }
        self._reported = True
        return info

    # What the prompt writer asks of a host ---------------------------------------------------------------------------

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        return len(self.tok_encode(text, add_special_tokens=False if bare else None))

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of the model's window that a request leaves free (an encoder's, where there is one)."""
        free = self.max_length - self.count(arguments[0], bare=False)
        if self.backend == "seq2seq":
            return free
        if request_type == "generate_until":
            from lm_eval.models.utils import normalize_gen_kwargs

            return free - int(normalize_gen_kwargs(arguments[1], self.max_gen_toks)["max_gen_toks"])
        return free - self.count(arguments[1], bare=True)

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        """The prompt that the host's chat template makes of messages."""
        return super().apply_chat_template(messages, add_generation_prompt=generation_prompt)  # type: ignore[misc]

    # What a result says ---------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, Any]:
        """Everything that a result must name: plain, path-free; corpora and retrievers as far as they were needed."""
        rag = self.rag
        made: dict[str, Any] = {
            "k": rag.k,
            "model": self._identity(),
            "scorer": self._scorer_used(),
            "environment": environment(),
        }
        made |= self._companions
        if self._loading:
            made["loading"] = self._loading
        if self._adapter is not None:
            made["adapter"] = self._adapter.name
            if self._adapter.identity is not None:  # the Hub's name and commit say more than a folder in its cache
                made["peft" if self._adapter.adapter else "model"] = self._adapter.identity
        if rag.k == 0:
            return made
        made["retriever"] = rag.retriever
        made["retrievers"] = [retriever.provenance() for retriever in self._library.retrievers.values()]
        made["corpora"] = [corpus.provenance() for corpus in self._library.corpora.values()]
        made["prompt"] = {
            "query": rag.rule.source or rag.rule.mode,
            "placement": rag.placement,
            "order": "relevance",
            "fusion": "concat",
            "context_template": rag.template,
            "context_tokens": rag.context_tokens,
            "max_length": self.max_length,
        }
        made["seeds"] = {"retriever": rag.retriever_seed}
        return made

    def _scorer_used(self) -> dict[str, Any]:
        """Which scorer was asked for and which one answered last, with the reason where they differ."""
        if self._scorer is None:
            return {"asked": self.rag.scorer, "used": "harness", "reason": ""}
        stats = self._scorer.stats
        return {"asked": self.rag.scorer, "used": stats.path, "reason": stats.reason}

    def _identity(self) -> dict[str, Any]:
        if not hasattr(self, "_identity_found"):
            commit = getattr(self.config, "_commit_hash", None)
            self._identity_found = model_identity(self.pretrained, commit=commit, revision=self.revision)
        return self._identity_found

    def _note(self, marks: list[Any], requests: list[Any]) -> None:
        """Keeps the figures of what was just written; the first process collects those of all."""
        by_mark = {id(mark): mark for mark in marks}
        mine = [
            figure_of(request, mark)
            for request in requests
            if (mark := by_mark.pop(id(mark_on(request)), None)) is not None
        ]
        for part in self.gather_object(mine) or ():
            self._written.update({(figure.task, figure.doc_id): figure for figure in part})


def _pin(hf: dict[str, Any], adapter: ResolvedAdapter) -> None:
    """Loads the base at the commit that an adapter was trained on, and no other."""
    given = hf.setdefault("revision", adapter.base_revision)
    if given != adapter.base_revision:
        raise ArgumentError(
            f"revision={given}: adapter={adapter.name} was trained on {adapter.base} at {adapter.base_revision}; "
            "remove revision=, or pass that one",
            WHERE,
        )


def _embedded_reader() -> str:
    folder = assets_dir() / "reader"
    if not (folder / "config.json").is_file():
        raise ModelError(
            "pretrained= was not given, and this installation carries no embedded reader. Pass a model, for example "
            f"pretrained={_REAL_MODEL}, or a folder with one."
        )
    log.info(
        "No pretrained= given: the embedded reader is scored, a small model that shows the method and nothing else. "
        "For a real one pass, for example, pretrained=%s.",
        _REAL_MODEL,
    )
    return str(folder)


def _misfit(hf: dict[str, Any], problem: str) -> str:
    return (
        f"The adapter peft={hf['peft']} doesn't fit the model pretrained={hf['pretrained']}: {problem}. Pass the base "
        "that it was trained on (base_model_name_or_path in its adapter_config.json)."
    )


def _unreachable(hf: dict[str, Any], problem: str) -> str:
    """Says which of the named models failed, and what works without a network."""
    given = {name: hf[name] for name in ("pretrained", *_COMPANIONS) if isinstance(hf.get(name), str)}
    named = {name: value for name, value in given.items() if value in problem}
    names = [f"{name}={value}" for name, value in (named or given).items()]
    reason = " ".join(problem.split()).split(". ")[0].rstrip(".")
    local = [name for name in ("pretrained", "peft") if hf.get(name) and Path(str(hf[name])).expanduser().is_dir()]
    advice = (
        "a folder there must hold config.json and weights (peft: adapter_config.json and weights)"
        if local
        else "check its spelling, and that HF_TOKEN is set if it is private"
    )
    return (
        f"The model can't be loaded ({', '.join(names)}): {reason}. What to do: {advice}. Without a network pass a "
        "folder on this disk or a model in the Hub's cache, or leave pretrained= out for the embedded reader."
    )
