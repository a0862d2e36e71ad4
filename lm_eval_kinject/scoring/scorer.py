"""The shared-prefix scorer: lm_eval's log-likelihood requests in, lm_eval's answers out, each distinct token once.

For: a model class that hands over what ``HFLM._loglikelihood_tokens`` receives. Not for: generation, rolling
log-likelihoods by text, or composing prompts.

The one idea: never be wrong and never be slower. A model that can't be exact, a run too small to pay for the
self-check, and a model that fails the self-check all take lm_eval's own path, and the log says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lm_eval_kinject.scoring.attention import UnsupportedAttentionError
from lm_eval_kinject.scoring.forward import Budget, TreeForward, starting_budget
from lm_eval_kinject.scoring.plan import Trie, build_trie
from lm_eval_kinject.scoring.support import base_model, reason_unsupported

logger = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""``((context, continuation) or None, context token ids, continuation token ids)``, as lm_eval passes them."""

Answer = tuple[float, bool]
"""Log-probability of the continuation in nats, and whether it is the greedy one."""

_FAMILY = 8  # most requests of one context in a self-check
_WORTH_A_SECOND_CHECK = 200  # distinct inputs from which on a second context is compared
_MARGIN = 0.9  # shared must promise to cost at most this part of lm_eval's path
_FORWARD_OVERHEAD = {"cpu": 32, "cuda": 512}  # of one forward, in tokens' worth of time


@dataclass
class ScoringStats:
    """What the last call did.

    Attributes:
        path: ``shared`` or ``harness``.
        reason: why it was ``harness``; empty otherwise.
        requests: how many were scored.
        forwarded_tokens: tokens that went through the model on the shared path, self-check families included.
        distinct_tokens: tokens of the trie of all requests.
        checked: how many requests were compared with lm_eval's path.
        largest_difference: largest |Δ log p| among these, in nats.
    """

    path: str
    reason: str = ""
    requests: int = 0
    forwarded_tokens: int = 0
    distinct_tokens: int = 0
    checked: int = 0
    largest_difference: float = 0.0


class SharedPrefixScorer:
    """Scores log-likelihood requests exactly, forwarding each distinct prefix once.

    Args:
        lm: a loaded ``hf`` model of lm_eval or a subclass; its truncation, cache hook, progress bar, data
            parallelism and mixed precision are honoured, its batch size matters to lm_eval's path alone.
        budget: limits of one forward; by default chosen from the device's memory.
        self_check: compare the longest requests of a run with lm_eval's path first.
        always: use shared prefixes even where a run is too small for them to pay.

    Attributes:
        stats: what the last call to `loglikelihood` did.
    """

    def __init__(
        self, lm: HFLM, *, budget: Budget | None = None, self_check: bool = True, always: bool = False
    ) -> None:
        self._lm = lm
        self._self_check = self_check
        self._always = always
        self._unsupported = reason_unsupported(lm)
        self._failed: str | None = None  # the self-check's verdict; unlike _unsupported, it may differ by process
        self._checked_length = 0
        self._said: set[str] = set()
        self.stats = ScoringStats("harness")
        if self._unsupported is None:
            model = base_model(lm)
            budget = budget or starting_budget(model)
            self._forward = TreeForward(lm.model, torch.device(lm.device), lm.mixed_precision_dtype, budget)
            self._head_share = _head_share(model)

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Scores `requests`; the drop-in for ``HFLM._loglikelihood_tokens``.

        Args:
            requests: contexts and continuations, already tokenized, neither ever empty.
            disable_tqdm: no progress bar.
            override_bs: batch size of lm_eval's path, should it be taken.

        Returns:
            An answer for each request, in order.
        """
        requests = list(requests)
        limit = self._lm.max_length
        harness = partial(self._harness, requests, disable_tqdm, override_bs)
        if any(not context or not 0 < len(option) <= limit for _, context, option in requests):
            return harness("a request is empty or too long")  # which lm_eval refuses in its own words
        if reason := self._unsupported or self._failed:
            self._say(f"Scoring with lm_eval's own path, because {reason}.")
            return harness(reason)
        inputs = [truncated_input(context, option, limit) for _, context, option in requests]
        trie = build_trie(inputs, [option for _, _, option in requests])
        suspects = self._suspects(requests, inputs)
        if not self._always and not self._pays(trie, [len(inputs[i]) for i in suspects]):
            return harness("sharing would not pay")
        cut = sum(len(context) + len(option) > limit + 1 for _, context, option in requests)
        if cut:
            self._say(f"{cut} of {len(requests)} requests exceed {limit} tokens and lose their beginning.")

        self.stats = ScoringStats("shared", requests=len(requests), distinct_tokens=len(trie))
        before = self._forward.forwarded_tokens
        answers = self._verified(requests, inputs, suspects)
        if answers is None:
            return harness(str(self._failed))
        with tqdm(
            total=len(requests),
            initial=len(answers),
            disable=disable_tqdm or self._lm.rank != 0,
            desc="Running loglikelihood requests",
        ) as progress:
            for index, answer in self._answers(requests, inputs, trie, set(answers)):
                answers[index] = answer
                self._remember(requests[index], answer)
                progress.update(1)
        self.stats.forwarded_tokens = self._forward.forwarded_tokens - before
        return [answers[index] for index in range(len(requests))]

    def _answers(
        self, requests: Sequence[Request], inputs: Sequence[list[int]], trie: Trie | None, done: Set[int] = frozenset()
    ) -> Iterator[tuple[int, Answer]]:
        """Answers of all requests but those `done`, each as soon as it is known, with its index.

        `trie` is that of all requests; it is made anew where it is missing or something is done.
        """
        todo = [index for index in range(len(requests)) if index not in done]
        if trie is None or done:
            trie = build_trie([inputs[i] for i in todo], [requests[i][2] for i in todo])
        log_probs, greedy = np.zeros(len(trie.rows)), np.zeros(len(trie.rows), np.bool_)
        last_rows = trie.rows[trie.offsets[1:] - 1]
        by_completion = iter(np.argsort(last_rows, kind="stable").tolist())
        waiting = next(by_completion, None)
        for scores in self._forward.score(trie):
            log_probs[scores.pairs], greedy[scores.pairs] = scores.log_probs, scores.greedy
            while waiting is not None and last_rows[waiting] < scores.stop:
                own = slice(trie.offsets[waiting], trie.offsets[waiting + 1])
                yield todo[waiting], (float(log_probs[own].sum()), bool(greedy[own].all()))
                waiting = next(by_completion, None)

    def _suspects(self, requests: Sequence[Request], inputs: Sequence[list[int]]) -> list[int]:
        """The requests to compare with lm_eval's path: the longest, and in a large run the longest elsewhere.

        Empty where requests at least as long agreed before. Twice as long counts as new: it may be the first beyond
        a window or some other limit.
        """
        longest = max(range(len(inputs)), key=lambda i: len(inputs[i]), default=None)
        if not self._self_check or longest is None or len(inputs[longest]) < 2 * self._checked_length:
            return []
        if len(requests) < _WORTH_A_SECOND_CHECK:
            return [longest]
        elsewhere = (i for i in range(len(inputs)) if requests[i][1] != requests[longest][1])
        return [longest, *(i for i in [max(elsewhere, key=lambda i: len(inputs[i]), default=None)] if i is not None)]

    def _verified(
        self, requests: Sequence[Request], inputs: Sequence[list[int]], suspects: Sequence[int]
    ) -> dict[int, Answer] | None:
        """Scores the suspects with their siblings in both ways.

        Returns:
            The shared path's answers, by index of the request; None if the two ways differ, which is said loudly.
        """
        if not suspects:
            return {}
        family = list(suspects)
        for suspect in suspects:
            context = requests[suspect][1]
            siblings = (i for i, (_, other, _) in enumerate(requests) if other == context and i not in suspects)
            family.extend(islice(siblings, _FAMILY))
        family = list(dict.fromkeys(family))
        try:
            found = dict(self._answers([requests[i] for i in family], [inputs[i] for i in family], None))
        except UnsupportedAttentionError as error:
            self._fail(str(error))
            return None
        shared = {family[place]: answer for place, answer in found.items()}
        for suspect, (log_prob, _) in zip(suspects, self._plain(requests, suspects), strict=True):
            difference = abs(shared[suspect][0] - log_prob)
            self.stats.checked += 1
            self.stats.largest_difference = max(self.stats.largest_difference, difference)
            if not difference <= self._tolerance(len(requests[suspect][2])):
                self._fail(f"they differ by {difference:.2g} nats on a request of {len(inputs[suspect])} tokens")
                return None
        self._checked_length = max(len(inputs[i]) for i in suspects)
        for index, answer in shared.items():
            self._remember(requests[index], answer)
        return shared

    def _plain(self, requests: Sequence[Request], chosen: Sequence[int]) -> list[Answer]:
        """lm_eval's own answers, with its log-softmax in float32 so that only the model's rounding is compared."""
        own = self._lm.softmax_dtype
        self._lm.softmax_dtype = torch.float32
        try:
            unnamed = [(None, *requests[i][1:]) for i in chosen]  # without text, lm_eval caches nothing
            return HFLM._loglikelihood_tokens(self._lm, unnamed, disable_tqdm=True, override_bs=1)
        finally:
            self._lm.softmax_dtype = own

    def _tolerance(self, n_scored: int) -> float:
        """Largest |Δ log p| of `n_scored` tokens that rounding explains; a wrong mask is off by tenths of nats."""
        model = base_model(self._lm)
        dtype = self._lm.mixed_precision_dtype or (
            torch.bfloat16 if getattr(model, "is_quantized", False) else model.dtype
        )
        base, each = {torch.float32: (1e-4, 1e-5), torch.float16: (0.02, 0.01)}.get(dtype, (0.1, 0.05))
        return base + each * n_scored

    def _fail(self, reason: str) -> None:
        self._failed = f"the self-check of shared prefixes failed ({reason})"
        logger.error("%s; every request takes lm_eval's own path. Please report this model.", self._failed.capitalize())

    def _pays(self, trie: Trie, check_lengths: Sequence[int]) -> bool:
        """Whether sharing promises to be clearly faster, self-check included.

        Costs are in tokens' worth of time: 1 for a token through the layers, `_head_share` for its logits, and a
        little for starting a forward.
        """
        overhead = _FORWARD_OVERHEAD.get(self._lm.device.type, 512)
        batch = self._lm.batch_size if isinstance(self._lm.batch_size, int) else 8
        separate = trie.separate_lengths
        plain = separate.sum() * (1 + self._head_share) + overhead * -(-len(separate) // batch)
        shared = len(trie) + len(trie.scored_rows) * self._head_share
        shared += overhead * (1 + len(trie) // self._forward.budget.tokens)
        shared += sum(length * (1 + self._head_share) + 2 * overhead for length in check_lengths)
        return bool(shared <= _MARGIN * plain)

    def _remember(self, request: Request, answer: Answer) -> None:
        if request[0] is not None:
            self._lm.cache_hook.add_partial("loglikelihood", request[0], answer)

    def _harness(
        self, requests: list[Request], disable_tqdm: bool, override_bs: int | None, reason: str
    ) -> list[Answer]:
        self.stats = replace(
            self.stats if reason == self._failed else ScoringStats("harness"),
            path="harness",
            reason=reason,
            requests=len(requests),
        )
        if override_bs is None and self._lm.world_size > 1 and self._unsupported is None:
            # With batch_size=auto, finding a size is a joint step of all processes, and the others may not be here.
            override_bs = 1
        return HFLM._loglikelihood_tokens(self._lm, requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)


def truncated_input(context: Sequence[int], option: Sequence[int], max_length: int) -> list[int]:
    """What a causal model sees of a request, as in lm_eval: cut from the left, without the last option token."""
    return [*context, *option][-(max_length + 1) :][:-1]


def _head_share(model: Any) -> float:
    """Cost of one token's logits and their log-softmax, as a part of the cost of its layers."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    outer = {id(p): p.numel() for part in (head, embeddings) if part is not None for p in part.parameters()}
    layers = sum(p.numel() for p in model.parameters()) - sum(outer.values())
    size = sum(p.numel() for p in head.parameters()) if head is not None else 0
    return float(size / max(1, layers))
