"""Open answers of a fusion that gives each document a prompt of its own.

What it is for: `problems` says what a task may ask of such a generation, `answers` makes it: RAG-Token chooses each
token by the mixture of all documents' distributions; RAG-Sequence lets each document propose answers of its own, and
takes the one that is likeliest under all of them, or under those that proposed it ("thorough" and "fast decoding" of
Lewis et al. 2020, arXiv 2005.11401). Either has as many beams as the task's ``num_beams``. What it does not do: it runs
no model, which is the host's part (`models.host.Decoder`).

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
_GREEDY = {"do_sample": False, "temperature": 0.0}


def problems(gen_kwargs: Mapping[str, Any], fusion: str) -> list[str]:
    """What can't be had of a task's ``generation_kwargs``: anything but the greedy answer, or that of some beams."""
    given = {name: value for name, value in gen_kwargs.items() if value is not None and name not in _TAKEN}
    beams = given.pop("num_beams", 1)
    other = [f"{name}={value}" for name, value in given.items() if name not in _GREEDY or value != _GREEDY[name]]
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        other.append(f"num_beams={beams}")
    if not other:
        return []
    problem = (
        f"fusion={fusion} gives the likeliest answer and takes until, max_gen_toks and a number of num_beams alone, "
        f"and this task asks for {', '.join(other)}; pass --gen_kwargs do_sample=False,temperature=0 against sampling, "
        "remove others from the "
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
    proposed = [_Proposals(lm, fusion, *one) for one in bar]
    requests = [one.requests() if jointly or one.several else [] for one in proposed]
    flat = [request for each in requests for request in each]
    found = iter(score(flat) if flat else ())
    return [one.best(fusion, [next(found)[0] for _ in each]) for one, each in zip(proposed, requests, strict=True)]


def _by_token(lm: Decoder, fusion: Fusion, mark: Written, gen_kwargs: Mapping[str, Any]) -> str:
    rows = [lm.prompt_ids(prompt, gen_kwargs) for prompt in mark.prompts]
    prior = fusion.prior(mark.scores).tolist()
    return lm.text_of(lm.continuations(rows, gen_kwargs, prior)[0], gen_kwargs)


class _Proposals:
    """The likeliest answers of each of a question's documents, each once, the best document's first."""

    def __init__(self, lm: Decoder, fusion: Fusion, mark: Written, gen_kwargs: Mapping[str, Any]) -> None:
        self._mark = mark
        self._rows = [lm.prompt_ids(prompt, gen_kwargs) for prompt in mark.prompts]
        by = [[tuple(tokens) for tokens in lm.continuations([row], gen_kwargs)] for row in self._rows]
        # A document that is asked for one that it didn't propose is read once more; in fast decoding it isn't asked.
        every = range(len(by))
        self._asked = {
            tokens: [n for n in every if fusion.thorough or tokens in by[n]] for each in by for tokens in each
        }
        self._texts = {tokens: lm.text_of(tokens, gen_kwargs) for tokens in self._asked}

    @property
    def several(self) -> bool:
        """Whether there is anything to choose."""
        return len(self._texts) > 1

    def requests(self) -> list[Any]:
        """Each proposal behind the prompt of each document that is asked."""
        return [
            ((self._mark.prompts[n], self._texts[tokens]), self._rows[n], list(tokens))
            for tokens, documents in self._asked.items()
            for n in documents
        ]

    def best(self, fusion: Fusion, log_probs: Sequence[float]) -> str:
        """The likeliest proposal's text, of equals the best document's; `log_probs` may be empty if there is one."""
        if not self.several:
            return next(iter(self._texts.values()))
        # (proposals, documents, 1): the documents' log-probabilities of whole answers, which add up over tokens
        table = np.full((len(self._texts), len(self._rows), 1), -np.inf)
        places = [(row, n) for row, documents in enumerate(self._asked.values()) for n in documents]
        for place, log_prob in zip(places, log_probs, strict=True):
            table[place] = log_prob
        together = [fusion.combine(each, self._mark.scores) for each in table]
        return list(self._texts.values())[int(np.argmax(together))]
