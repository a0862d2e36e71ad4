"""Open answers of a fusion that gives each document a prompt of its own.

What it is for: `problems` says what a task may ask of such a generation, `answers` makes it: RAG-Token chooses each
token by the mixture of all documents' distributions; RAG-Sequence lets each document propose its own greedy answer and
takes the one that is likeliest under all of them ("thorough decoding" of Lewis et al. 2020, arXiv 2005.11401, with one
beam a document). What it does not do: it runs no model, which is the host's part (`models.host.Decoder`).

The one idea: an answer is its tokens with what ended it (the end of text or a stop string), so that a short answer and
a long one are compared as wholes, and no text is cut into tokens a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from lm_eval_kinject.context.combine import Fusion
from lm_eval_kinject.models.host import Decoder
from lm_eval_kinject.models.prompts import Written

__all__ = ["answers", "problems"]

Asked = tuple[Written, Mapping[str, Any]]
"""A question with several prompts, and how its answer is to be generated."""

Score = Callable[[list[Any]], Sequence[tuple[float, bool]]]
"""``HFLM._loglikelihood_tokens``, or what answers as it does."""

_TAKEN = {"until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
_GREEDY = {"do_sample": False, "temperature": 0.0, "num_beams": 1}


def problems(gen_kwargs: Mapping[str, Any], fusion: str) -> list[str]:
    """What can't be had of a task's ``generation_kwargs``: anything but the greedy answer."""
    given = {name: value for name, value in gen_kwargs.items() if value is not None and name not in _TAKEN}
    other = [f"{name}={value}" for name, value in given.items() if name not in _GREEDY or value != _GREEDY[name]]
    if not other:
        return []
    problem = (
        f"fusion={fusion} gives the greedy answer and takes until and max_gen_toks alone, and this task asks for "
        f"{', '.join(other)}; pass --gen_kwargs do_sample=False,temperature=0 against sampling, remove others from the "
        "task's generation_kwargs, or pass fusion=concat"
    )
    return [problem]


def answers(
    lm: Decoder, fusion: Fusion, asked: Sequence[Asked], score: Score, *, jointly: bool = False, quiet: bool = False
) -> list[str]:
    """The text of each answer.

    Args:
        lm: what decodes.
        fusion: how documents are marginalised.
        asked: questions with two prompts or more.
        score: log-likelihoods of tokens behind tokens, for all questions at once.
        jointly: other processes score at the same time, and wait where this one has nothing to score; so it scores
            what needs no choice, too.
        quiet: without a bar of progress.
    """
    bar = tqdm(asked, disable=quiet, desc=f"Generating, fusion={fusion.name}")
    if fusion.stepwise:
        return [_by_token(lm, fusion, *one) for one in bar]
    proposed = [_Proposals(lm, *one) for one in bar]
    requests = [one.requests() if jointly or one.several else [] for one in proposed]
    flat = [request for each in requests for request in each]
    found = iter(score(flat) if flat else ())
    return [one.best(fusion, [next(found)[0] for _ in each]) for one, each in zip(proposed, requests, strict=True)]


def _by_token(lm: Decoder, fusion: Fusion, mark: Written, gen_kwargs: Mapping[str, Any]) -> str:
    rows = [lm.prompt_ids(prompt, gen_kwargs) for prompt in mark.prompts]
    prior = fusion.prior(mark.scores).tolist()
    return lm.text_of(lm.greedy(rows, gen_kwargs, prior), gen_kwargs)


class _Proposals:
    """The greedy answers of a question's documents, each once, the best document's first."""

    def __init__(self, lm: Decoder, mark: Written, gen_kwargs: Mapping[str, Any]) -> None:
        self._mark = mark
        self._rows = [lm.prompt_ids(prompt, gen_kwargs) for prompt in mark.prompts]
        each = dict.fromkeys(tuple(lm.greedy([row], gen_kwargs)) for row in self._rows)
        self._texts = {tokens: lm.text_of(tokens, gen_kwargs) for tokens in each}

    @property
    def several(self) -> bool:
        """Whether there is anything to choose."""
        return len(self._texts) > 1

    def requests(self) -> list[Any]:
        """Each proposal behind each document's prompt."""
        return [
            ((prompt, text), row, list(tokens))
            for tokens, text in self._texts.items()
            for prompt, row in zip(self._mark.prompts, self._rows, strict=True)
        ]

    def best(self, fusion: Fusion, log_probs: Sequence[float]) -> str:
        """The likeliest proposal's text, of equals the best document's; `log_probs` may be empty if there is one."""
        if not self.several:
            return next(iter(self._texts.values()))
        # (proposals, documents, 1): the documents' log-probabilities of whole answers, which add up over tokens
        table = np.reshape(log_probs, (len(self._texts), len(self._rows), 1))
        together = [fusion.combine(each, self._mark.scores) for each in table]
        return list(self._texts.values())[int(np.argmax(together))]
