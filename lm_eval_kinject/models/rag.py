"""Retrieval for any of lm_eval's language models: the mixin behind the model types ``rag-…``.

What it is for: `RagMixin` goes before a `Host` and one of lm_eval's model classes, and gives them our arguments,
retrieved text in the prompts of ``loglikelihood`` and ``generate_until``, and provenance in the results. What it does
not do: it loads no model and computes no log-likelihood; that is the host's work, or the shared-prefix scorer's.

The one idea: with ``k=0`` every method hands its arguments on untouched, so that the result has the same bits as the
host class's own; everything else lives in `PromptWriter`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lm_eval_kinject.context.reason import SelfReasoning
from lm_eval_kinject.context.route import Again
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.log import log
from lm_eval_kinject.models import ending, generation, task_hook
from lm_eval_kinject.models.arguments import HF, RagArguments, split
from lm_eval_kinject.models.engine import Engine, parameters_of
from lm_eval_kinject.models.host import Decoder
from lm_eval_kinject.models.pipeline import SLOTS
from lm_eval_kinject.models.prompts import PromptWriter, mark_on
from lm_eval_kinject.models.reasoning import Reasoned, read, reasoning_figures
from lm_eval_kinject.models.results import Figure, check_complete, figure_of, figures, ties
from lm_eval_kinject.models.rolling import RollingWriter
from lm_eval_kinject.models.routing import Routed, Router, route_figures
from lm_eval_kinject.provenance import environment
from lm_eval_kinject.retrieval.library import AsFound, Library, clock
from lm_eval_kinject.stages import known_arguments

if TYPE_CHECKING:
    from lm_eval_kinject.models.host import Host
    from lm_eval_kinject.models.together import OnePass, Share

    _Base = Host  # what a class mixed into has beside lm_eval's own methods
else:
    _Base = object

__all__ = ["RagMixin"]


class RagMixin(_Base):
    """Mixed in before a host and the class of lm_eval that it is for.

    Args:
        pretrained: as the host class takes it.
        **arguments: all of the host class's, and our own (`lm_eval_kinject.models.arguments`).

    Raises:
        ArgumentError: an argument is unknown, unsound or contradicts another; nothing has been loaded then.
        CorpusError: ``corpus=`` can't be loaded; no model has been loaded then.
        ModelError: the language model can't be reached.
        ProvenanceError: it can't be named (what is retrieved from and how is checked before the first score).
    """

    host_class: Any
    """The class of lm_eval that is mixed into; a subclass names it."""

    world_size: int
    """Of lm_eval's model: processes that evaluate together."""

    rank: int
    """Of lm_eval's model: which of them this is."""

    engine: Engine = HF
    """What is known of the model type before it is loaded; a subclass names its own."""

    needs_messages = False
    """Whether prompts must come from ``--apply_chat_template``."""

    def __init__(self, pretrained: Any = None, **arguments: Any) -> None:
        ending.install()
        if pretrained is not None:
            arguments["pretrained"] = pretrained
        usual, where = parameters_of(self.host_class), self.engine.where
        parted = split(arguments, usual, self.engine)
        stages = parted.rag.pipeline
        if parted.rag.k == 0 and (idle := _idle(arguments)):
            log.info("With k=0 nothing is retrieved, so this has no effect: %s.", ", ".join(idle))
        if self.engine.connects:
            self._load_host(parted.rag, parted.hf, usual)
        library = Library(stages.search, stages.rerank, stages.probe, "cpu", where, stages.route.depth)
        known = self.gives_log_probs or not self.engine.connects
        if stages.search.k > 0 and stages.search.corpus is not None and known:
            # what is wrong with it is found before the model is loaded; an endpoint without log-probabilities may have
            # a task of multiple choice to refuse first, and is asked nothing before the corpus is there
            stages.route.check(library.corpus(stages.search.corpus), stages.search.k)
        if not self.engine.connects:
            self._load_host(parted.rag, parted.hf, usual)
        self._scorers: dict[str, Any] = {}
        library.device = self.encoder_device()
        self._take(parted.rag, library)

    def _load_host(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Loads the model, and says what it can't give."""
        self.load(rag, arguments, usual)
        self._check_abilities(rag)
        if not self.gives_log_probs:
            log.warning(
                "%s gives no log-probabilities of a prompt here: tasks of multiple choice will be refused; run tasks "
                "of open answers (generate_until).",
                self.engine.type,
            )

    def _check_abilities(self, rag: RagArguments) -> None:
        """Refuses what the loaded model can't do.

        Raises:
            ArgumentError: a fusion marginalises log-probabilities, and there are none.
        """
        if rag.pipeline.fusion.several and not self.gives_log_probs:
            raise ArgumentError(
                f"fusion={rag.pipeline.fusion.name} adds up log-probabilities, which this model doesn't give; pass "
                "fusion=concat",
                self.engine.where,
            )

    def _take(self, rag: RagArguments, library: Library) -> None:
        """Begins with these arguments: nothing asked, nothing written, nothing scored yet."""
        self.rag = rag
        self._written: dict[tuple[str, int], Figure] = {}
        self._ties: dict[tuple[str, int], bool] = {}
        self._routed: dict[tuple[str, int], Routed] = {}
        self._reasoned: dict[tuple[str, int], Reasoned] = {}
        self._searches: Counter[str] = Counter()
        self._seconds = library.seconds
        self._reported = False
        self._pass: OnePass | None = None
        self._share: Share | None = None
        self._library = library
        self._writer = PromptWriter(rag.pipeline, self, library)
        if rag.k > 0 or not self.gives_log_probs:
            task_hook.install()
        self._scorer = self._shared_scorer() if rag.scorer == "shared" else None
        check_complete(self.provenance(), retrieves=False)

    def _shared_scorer(self) -> Any:
        """The shared-prefix scorer of the loaded model; one for all that score with it."""
        if "shared" not in self._scorers:
            self._scorers["shared"] = self.prefix_scorer()
        return self._scorers["shared"]

    def exchange(self, **adapter: Any) -> None:
        """Puts another adapter on the loaded base, where the host can; see `HFHost.exchange`."""
        super().exchange(**adapter)  # type: ignore[misc]
        self._scorers.clear()
        self._scorer = self._shared_scorer() if self.rag.scorer == "shared" else None

    def variant(self, **arguments: Any) -> Any:
        """The same loaded model with other arguments of ours, as if it had been loaded with them.

        Corpora, retrievers and embedded questions are shared; figures, times and results are each one's own.

        Args:
            **arguments: our own, all that aren't to be their defaults; ``adapter=`` is not among them.

        Raises:
            ArgumentError: an argument is none of ours, or unsound.
        """
        if arguments.get("adapter") is not None:
            raise ArgumentError("adapter= decides what is loaded; load a model with it", self.engine.where)
        rag = split(arguments, (), self.engine, loaded=True).rag
        self._check_abilities(rag)
        stages = rag.pipeline
        other = copy.copy(self)
        device, shelf = self._library.device, self._library.shelf
        where, more = self.engine.where, stages.route.depth
        other._take(rag, Library(stages.search, stages.rerank, stages.probe, device, where, more, shelf=shelf))
        return other

    # What lm_eval calls ---------------------------------------------------------------------------------------------

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        """Makes the model from ``--model_args`` and the command's own options; see lm_eval's ``LM``.

        Raises:
            ArgumentError: both name the same thing, which lm_eval's command does for options with a default.
        """
        twice = [name for name, value in (additional_config or {}).items() if value is not None and name in arg_dict]
        if twice:
            ending.install()
            raise ArgumentError(
                [f"{name}= has an option of its own; remove it, and write --{name} {arg_dict[name]}" for name in twice],
                cls.engine.where,
            )
        return super().create_from_arg_obj(arg_dict, additional_config)  # type: ignore[misc]

    def loglikelihood(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Scores continuations, with retrieved text in their contexts; see lm_eval's ``LM.loglikelihood``.

        Raises:
            ArgumentError: the host gives no log-probabilities, or the model is to write steps.
        """
        if not self.gives_log_probs:
            raise task_hook.no_log_probs(requests[0].task_name if requests else None)
        if isinstance(self.rag.pipeline.reasoning, SelfReasoning):
            raise ArgumentError(
                "reasoning=self-reasoning has the model write its answer, and this task scores given options; run a "
                "task of open answers (generate_until), or pass reasoning=none",
                "the command",
            )
        return self._answer("loglikelihood", requests, kwargs)

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        """Generates, with retrieved text in the contexts; see lm_eval's ``LM.generate_until``.

        Raises:
            ArgumentError: the host takes messages, and these are prompts.
        """
        if self.needs_messages and any(isinstance(request.args[0], str) for request in requests):
            raise ArgumentError("a chat endpoint takes messages and no text; add --apply_chat_template", "the command")
        return self._answer("generate_until", requests, kwargs)

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        """Scores whole texts, each stretch behind what was found with the text before it; see ``models.rolling``.

        Without retrieval, and where the task doesn't declare which document a text is, it is lm_eval's own number.

        Raises:
            ArgumentError: an argument or the model isn't made for it.
            ContextError: a text could be retrieved for itself.
        """
        if not self.gives_log_probs:
            raise ArgumentError(
                "this model gives no log-probabilities of a text, so it has no perplexity; run a task of open answers "
                "(generate_until), or score the model with rag-hf",
                "the command",
            )
        self._begin()
        host = super().loglikelihood_rolling  # type: ignore[misc]
        if self.rag.k == 0:
            with clock(self._seconds, "scoring"):
                return list(host(requests, **kwargs))
        writer = RollingWriter(self.rag.pipeline, self, self._library)
        tasks = {request.task_name: request for request in requests}
        declared = {name for name, request in tasks.items() if writer.is_declared(request)}
        ours = [request for request in requests if request.task_name in declared]
        others = [request for request in requests if request.task_name not in declared]
        rolled = writer.write(ours) if ours else []
        if rolled:
            check_complete(self.provenance(), retrieves=any(text.searches for text in rolled))
        for part in self.gather([(text.figure, text.searches) for text in rolled]) or ():
            self._written.update({(figure.task, figure.doc_id): figure for figure, _ in part})
            self._searches.update({task: sum(n for f, n in part if f.task == task) for task in declared})
        windows = [(("", ""), *window) for text in rolled for window in text.windows]
        with clock(self._seconds, "scoring"):
            whole = iter(host(others, **kwargs) if others else ())
            scored = iter(self._loglikelihood_tokens(windows, **kwargs) if windows else ())
        sums = iter([sum(next(scored)[0] for _ in text.windows) for text in rolled])
        return [next(sums if request.task_name in declared else whole) for request in requests]

    def _begin(self) -> None:
        """Forgets the evaluation before, with the same model object, once it has been reported."""
        if self._reported:
            self._written.clear()
            self._ties.clear()
            self._routed.clear()
            self._reasoned.clear()
            self._searches.clear()
            self._share = None
            self._seconds.clear()
            self._reported = False

    def _answer(self, method: str, requests: list[Any], kwargs: dict[str, Any]) -> Any:
        host = getattr(super(), method)
        self._begin()
        bare = requests
        if self._pass is not None:
            kwargs = {"disable_tqdm": True, **kwargs}  # the pass has a bar of its own
        if self.rag.k > 0:
            if method == "generate_until" and self.rag.pipeline.fusion.several:
                self._check_generation(requests)
            marks = self._writer.write(requests)
            if marks:
                check_complete(self.provenance(), retrieves=True)
            self._note(marks, requests)
            bare = [self._writer.bare(request) for request in requests]
        answers: Any
        if self.rag.k > 0 and self.rag.pipeline.fusion.several:
            marginal = self._marginal if method == "loglikelihood" else self._marginal_text
            answers = marginal(host, requests, kwargs)
        elif isinstance(self.rag.pipeline.route, Again):
            answers = self._asked_again(self.rag.pipeline.route, method, host, requests, kwargs)
        elif isinstance(self.rag.pipeline.reasoning, SelfReasoning):
            answers = self._reason(self.rag.pipeline.reasoning, host, requests, kwargs)
        else:
            with clock(self._seconds, "scoring"):
                answers = host(bare, **kwargs)
        if self._share is not None:
            self._seconds["scoring"] = self._share.seconds  # not the time in which others were evaluated
        if method == "loglikelihood":
            for part in self.gather(ties(requests, answers)) or ():
                self._ties.update(part)
        return answers

    def _asked_again(
        self, route: Again, method: str, host: Any, requests: list[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Answers of a route that asks some questions again with more text."""

        def ask(bare: list[Any]) -> list[Any]:
            with clock(self._seconds, "scoring"):
                return list(host(bare, **kwargs))

        router = Router(route, self, self._writer.bare, ask, jointly=self.world_size > 1)
        answers = router.answers(method, requests)
        for part in self.gather(router.routed) or ():
            self._routed.update({(one.task, one.doc_id): one for one in part})
        return answers

    def _reason(self, reasoning: SelfReasoning, host: Any, requests: list[Any], kwargs: dict[str, Any]) -> list[str]:
        """The final answers alone of what the model writes, empty where that is malformed."""
        bare = [self._writer.bare(request) for request in requests]
        for request, plain in zip(requests, bare, strict=True):
            if mark_on(request) is not None:
                plain.arguments = (plain.arguments[0], reasoning.generation(plain.arguments[1]))
        with clock(self._seconds, "scoring"):
            written = host(bare, **kwargs)
        answers, reasoned = read(requests, written)
        for part in self.gather(reasoned) or ():
            self._reasoned.update({(one.task, one.doc_id): one for one in part})
        return answers

    def _check_generation(self, requests: list[Any]) -> None:
        """Refuses, before anything is retrieved, what a fusion with several prompts can't generate.

        Raises:
            ArgumentError: the model doesn't decode for a fusion, or a task wants another answer than the greedy one.
        """
        fusion = self.rag.pipeline.fusion.name
        found = [problem for request in requests for problem in generation.problems(request.args[1], fusion)]
        if not (isinstance(self, Decoder) and self.decodes):
            found.append(
                f"fusion={fusion} generates with decoder-only models of rag-hf alone, as every chunk's next token must "
                "be at hand; pass fusion=concat, or run a task of multiple choice"
            )
        if found:
            raise ArgumentError(list(dict.fromkeys(found)), "the command")

    def _marginal_text(self, host: Any, requests: list[Any], kwargs: dict[str, Any]) -> list[str]:
        """What a fusion generates that gives each document a prompt of its own; what has one goes to the host."""
        marks = [mark_on(request) for request in requests]
        asked = [(m, r.args[1]) for m, r in zip(marks, requests, strict=True) if m is not None and m.scores]
        bare = [self._writer.bare(r) for m, r in zip(marks, requests, strict=True) if m is None or not m.scores]
        quiet = bool(kwargs.get("disable_tqdm")) or self.rank != 0
        with clock(self._seconds, "scoring"):
            whole = iter(host(bare, **kwargs) if bare else ())
            fused = iter(
                generation.answers(
                    cast("Decoder", self),
                    self.rag.pipeline.fusion,
                    asked,
                    lambda tokens: self._loglikelihood_tokens(tokens, disable_tqdm=quiet),
                    jointly=self.world_size > 1,
                    quiet=quiet,
                )
            )
        return [next(whole if mark is None or not mark.scores else fused) for mark in marks]

    def _marginal(self, host: Any, requests: list[Any], kwargs: dict[str, Any]) -> list[tuple[float, bool]]:
        """Answers of a fusion that gives each document a prompt of its own; what has one prompt goes to the host.

        Each token of a continuation is asked for as a request of one token, behind the document's prompt and the
        tokens before it: that is what marginalising needs, any host that takes tokens can answer it, and with shared
        prefixes it costs no more tokens than the continuations whole. The flag for the greedy continuation is True
        where it is the greedy one under every document, and so under their mixture; False says that this isn't known.

        """
        marks = [mark_on(request) for request in requests]
        scores = [() if mark is None else mark.scores for mark in marks]
        bare = [self._writer.bare(r) for r, apart in zip(requests, scores, strict=True) if not apart]
        tokens: list[Any] = []
        sizes: list[list[int]] = []  # of each request with several prompts: tokens of its continuation behind each
        for request, mark in zip(requests, marks, strict=True):
            if mark is None or not mark.scores:
                continue
            pairs = [(prompt, request.args[1]) for prompt in mark.prompts]
            encoded = [self._encode_pair(*pair) for pair in pairs]
            for pair, (before, after) in zip(pairs, encoded, strict=True):
                tokens += [(pair, [*before, *after[:place]], [token]) for place, token in enumerate(after)]
            sizes.append([len(after) for _, after in encoded])
        with clock(self._seconds, "scoring"):
            whole = iter(host(bare, **kwargs) if bare else ())
            found = iter(self._loglikelihood_tokens(tokens, disable_tqdm=self._pass is not None) if tokens else ())
        parts = iter([[next(found) for _ in range(size)] for size in each] for each in sizes)
        return [
            self._fused(request, apart, next(parts)) if apart else next(whole)
            for request, apart in zip(requests, scores, strict=True)
        ]

    def _fused(
        self, request: Any, scores: Sequence[float], parts: list[list[tuple[float, bool]]]
    ) -> tuple[float, bool]:
        """One answer from those of each token under each document."""
        if len({len(part) for part in parts}) > 1:
            raise ContextError(
                f"{task_hook.where(request)}: behind different chunks the tokenizer cuts {request.args[1]!r} into "
                "different tokens, so they can't be marginalised one by one; pass fusion=concat"
            )
        log_probs = np.array([[score for score, _ in part] for part in parts])
        together = self.rag.pipeline.fusion.combine(log_probs, scores)
        return together, all(flag for part in parts for _, flag in part)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and what follows it; in one pass over several cells, each pair is encoded once."""
        encode = super()._encode_pair  # type: ignore[misc]
        return (
            encode(context, continuation) if self._pass is None else self._pass.encoded(encode, context, continuation)
        )

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Takes the shared-prefix scorer, but for windows of rolling text (they have no key and share nothing)."""
        if self._pass is not None and override_bs is None:
            answers, share = self._pass.answers(requests)
            self._share = share if self._share is None else self._share.and_then(share)
            return answers
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
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()  # not all of lm_eval's classes say anything
        stages = self.rag.pipeline
        tasks = figures(
            self._written.values(),
            self.rag.k,
            ranked=stages.search.retriever != "full",
            reranked=0 if isinstance(stages.rerank, AsFound) else stages.rerank.depth(self.rag.k),
        )
        questions = Counter(task for task, _ in self._ties)
        tied = Counter(task for (task, _), is_tied in self._ties.items() if is_tied)
        for task, count in questions.items():
            tasks.setdefault(task, {"questions": count})["tied_questions"] = tied[task]
        for task, told in route_figures(self._routed.values()).items():
            tasks.setdefault(task, {})["route"] = told
        for task, told in reasoning_figures(self._reasoned.values()).items():
            tasks.setdefault(task, {})["reasoning"] = told
        for task, searches in self._searches.items():
            rolling = {"stride": stages.query.stride, "query_tokens": stages.query.query_tokens, "searches": searches}
            tasks[task]["rolling"] = rolling
        info["kinject"] = {
            **self.provenance(),
            "tasks": tasks,
            "seconds": {stage: round(passed, 3) for stage, passed in self._seconds.items()},
        }
        self._reported = True
        return info

    # What a result says ---------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, Any]:
        """Everything that a result must name: plain, path-free; corpora and retrievers as far as they were needed."""
        rag = self.rag
        made: dict[str, Any] = {
            "k": rag.k,
            **self.identity(),
            "scorer": self._scorer_used(),
            "environment": environment(),
        }
        if rag.k == 0:
            return made
        made["retriever"] = rag.pipeline.search.retriever
        made["retrievers"] = [retriever.provenance() for retriever in self._library.retrievers.values()]
        made["corpora"] = [corpus.provenance() for corpus in self._library.corpora.values()]
        made["prompt"] = {**rag.pipeline.prompt(), "max_length": self.max_length}
        made["pipeline"] = {**rag.pipeline.provenance(), "rerank": self._library.reranking()}
        made["seeds"] = {"retriever": rag.pipeline.search.retriever_seed}
        return made

    def _scorer_used(self) -> dict[str, Any]:
        """Which scorer was asked for and which one answered last, with the reason where they differ."""
        scorer = self._scorer if self._pass is None else self._shared_scorer()
        if scorer is None:
            return {"asked": self.rag.scorer, "used": "harness", "reason": ""}
        used: dict[str, Any] = {"asked": self.rag.scorer, "used": scorer.stats.path, "reason": scorer.stats.reason}
        if self._share is not None:
            used["together"] = {"evaluations": self._share.evaluations, "distinct_tokens": self._share.distinct_tokens}
        return used

    def _note(self, marks: list[Any], requests: list[Any]) -> None:
        """Keeps the figures of what was just written; the first process collects those of all."""
        by_mark = {id(mark): mark for mark in marks}
        mine = [
            figure_of(request, mark)
            for request in requests
            if (mark := by_mark.pop(id(mark_on(request)), None)) is not None
        ]
        for part in self.gather(mine) or ():
            self._written.update({(figure.task, figure.doc_id): figure for figure in part})


def _idle(arguments: Mapping[str, Any]) -> list[str]:
    """The given arguments that say how to retrieve, as they were typed."""
    given = [name for name in known_arguments(SLOTS) if name != "k" and arguments.get(name) not in (None, "none")]
    return [f"{name}={arguments[name]}" for name in arguments if name in given]
