"""The shared-prefix scorer: lm_eval's log-likelihood requests in, lm_eval's answers out, each distinct token once.

For: a model class that hands over what ``HFLM._loglikelihood_tokens`` receives. Not for: generation, rolling
log-likelihoods by text, or composing prompts.

The one idea: never be wrong and never be slower. Prefixes are shared by tree attention where the model's code allows
it (`forward`), else by forking its own cache (`fork`). A model that can't be exact in either way, a run too small to
pay for the self-check, and a model that fails the self-check all take lm_eval's own path. The log says so once, but for
small runs, of which only `ScoringStats` tells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lm_eval_kinject.log import log
from lm_eval_kinject.scoring.attention import UnsupportedAttentionError
from lm_eval_kinject.scoring.fork import ForkForward, UnsupportedCacheError
from lm_eval_kinject.scoring.forward import Budget, TreeForward, forward_overhead, starting_budget
from lm_eval_kinject.scoring.plan import Trie, build_trie, common_prefix
from lm_eval_kinject.scoring.support import base_model, reason_no_fork, reason_unsupported

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""``((context, continuation) or None, context token ids, continuation token ids)``, as lm_eval passes them."""

Answer = tuple[float, bool]
"""Log-probability of the continuation in nats, and whether it is the greedy one."""

_WORTH_A_SECOND_CHECK = 200  # requests from which on a second one is compared
_MARGIN = 0.9  # shared must promise to cost at most this part of lm_eval's path


@dataclass
class ScoringStats:
    """What the last call did.

    Attributes:
        path: ``shared`` (a tree of prefixes in one forward), ``forked`` (the model's own cache) or ``harness``.
        reason: why it was ``harness``; empty otherwise.
        requests: how many were scored.
        forwarded_tokens: tokens that went through the model on the shared path, a batch's padding included.
        distinct_tokens: tokens of the trie of all requests.
        checked: how many requests were compared with lm_eval's path.
        check_tokens: tokens that went through the model for that, beside the forwarded ones.
        largest_difference: largest |Δ log p| among these, in nats.
    """

    path: str
    reason: str = ""
    requests: int = 0
    forwarded_tokens: int = 0
    distinct_tokens: int = 0
    checked: int = 0
    check_tokens: int = 0
    largest_difference: float = 0.0


class _SelfCheckError(Exception):
    """The two paths disagree; the text says by how much."""


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
        no_tree, no_fork = reason_unsupported(lm), reason_no_fork(lm)
        self._way = "shared" if no_tree is None else "forked"
        self._unsupported = no_tree if no_fork is not None else None
        self._failed: str | None = None  # the self-check's verdict; unlike _unsupported, it may differ by process
        self._checked_length = 0
        self._said: set[str] = set()
        self.stats = ScoringStats("harness", reason=self._unsupported or "")
        if self._unsupported is None:
            model = base_model(lm)
            budget = budget or starting_budget(model)
            device, autocast = torch.device(lm.device), lm.mixed_precision_dtype
            self._forward: TreeForward | ForkForward = (
                TreeForward(lm.model, device, autocast, budget)
                if self._way == "shared"
                else ForkForward(lm.model, model, device, autocast, budget, tolerance=self._tolerance(1))
            )
            self._head_share = _head_share(model)
            self._window = _window(model.config.get_text_config())

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
        if self._unsupported is not None:  # the same in all processes, as the model is
            self._say(f"Scoring with lm_eval's own path, because {self._unsupported}.")
            return harness(self._unsupported)
        if self._failed is not None:
            self._say(f"Scoring with lm_eval's own path, because {self._failed}.")
            self._all_share(False)
            return harness(self._failed)
        inputs = [truncated_input(context, option, limit) for _, context, option in requests]
        suspect = self._suspect(inputs)
        # A sibling of the suspect comes before it in the trie, so that comparing the suspect tries the mask too.
        sibling = _sibling(suspect, inputs)
        trie = build_trie(inputs, [option for _, _, option in requests], first=suspect if sibling is None else sibling)
        suspects = [] if suspect is None else [suspect]
        if sibling is not None and len(requests) >= _WORTH_A_SECOND_CHECK:
            suspects.append(sibling)
        try:
            pays = self._always or self._pays(trie, [len(inputs[i]) for i in suspects])
        except UnsupportedCacheError as error:
            self._failed, pays = str(error), False
            self._say(f"Scoring with lm_eval's own path, because {error}.")
        if not self._all_share(pays):
            others = "another process takes lm_eval's path"
            return harness(others if pays else self._failed or "sharing would not pay")
        cut = sum(len(context) + len(option) > limit + 1 for _, context, option in requests)
        if cut:
            self._say(f"{cut} of {len(requests)} requests exceed {limit} tokens and lose their beginning.")

        before = self._forward.forwarded_tokens
        self.stats = stats = ScoringStats(self._way, requests=len(requests), distinct_tokens=len(trie))
        try:
            return self._shared(requests, trie, set(suspects), disable_tqdm)
        except (UnsupportedAttentionError, UnsupportedCacheError, _SelfCheckError) as error:
            self._failed = f"shared prefixes aren't exact for it ({error})"
            self._say(f"Scoring with lm_eval's own path, because {self._failed}.", logging.ERROR)
            answers = harness(self._failed, alone=True)
            self.stats = replace(stats, path="harness", reason=self._failed)
            return answers
        finally:
            self.stats.forwarded_tokens = self._forward.forwarded_tokens - before

    def distinct_tokens(self, requests: Sequence[Request]) -> int:
        """Tokens of the trie of some requests: what scoring them forwards, the self-check apart."""
        inputs = [truncated_input(context, option, self._lm.max_length) for _, context, option in requests]
        return len(build_trie(inputs, [option for _, _, option in requests]))

    def _shared(self, requests: Sequence[Request], trie: Trie, suspects: Set[int], disable_tqdm: bool) -> list[Answer]:
        """Scores `requests` through their trie; nothing is handed on before the suspects agree with lm_eval's path."""
        answers: dict[int, Answer] = {}
        withheld: list[int] = []
        unchecked = bool(suspects)
        hidden = disable_tqdm or self._lm.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as progress:
            for index, answer in self._answers(trie):
                answers[index] = answer
                withheld.append(index)
                if unchecked and suspects <= answers.keys():
                    self._compare(requests, {suspect: answers[suspect] for suspect in suspects})
                    unchecked = False
                if not unchecked:
                    for done in withheld:
                        self._remember(requests[done], answers[done])
                    withheld.clear()
                progress.update(1)
        return [answers[index] for index in range(len(requests))]

    def _answers(self, trie: Trie) -> Iterator[tuple[int, Answer]]:
        """Answers with the index of their request, each as soon as it is known."""
        log_probs, greedy = np.zeros(len(trie.rows)), np.zeros(len(trie.rows), np.bool_)
        missing = np.diff(trie.offsets)
        owners = np.repeat(np.arange(trie.n_requests), missing)
        for scores in self._forward.score(trie):
            log_probs[scores.pairs], greedy[scores.pairs] = scores.log_probs, scores.greedy
            touched, found = np.unique(owners[scores.pairs], return_counts=True)
            missing[touched] -= found
            for request in touched[missing[touched] == 0].tolist():
                own = slice(trie.offsets[request], trie.offsets[request + 1])
                yield request, (float(log_probs[own].sum()), bool(greedy[own].all()))

    def _suspect(self, inputs: Sequence[list[int]]) -> int | None:
        """The request to compare with lm_eval's path: the longest.

        None where requests about as long agreed before. Half as long again counts as new, and so does the first
        beyond the model's window.
        """
        longest = max(range(len(inputs)), key=lambda i: len(inputs[i]), default=None)
        if not self._self_check or longest is None:
            return None
        enough = 1.5 * self._checked_length
        if self._checked_length <= self._window:
            enough = min(enough, self._window)
        return longest if len(inputs[longest]) > enough else None

    def _compare(self, requests: Sequence[Request], shared: Mapping[int, Answer]) -> None:
        """Compares answers of the shared path with those of the model's own attention.

        Raises:
            _SelfCheckError: they differ by more than rounding.
        """
        for index, (ours, _) in shared.items():
            _, context, option = requests[index]
            seen = truncated_input(context, option, self._lm.max_length)
            # Not the greedy flags: where two tokens are about as likely, rounding alone turns them.
            theirs, _ = self._forward.plain(seen, option)
            self.stats.check_tokens += len(seen)
            difference = abs(ours - theirs)
            self.stats.checked += 1
            self.stats.largest_difference = max(self.stats.largest_difference, difference)
            if not difference <= self._tolerance(len(option)):
                raise _SelfCheckError(f"{difference:.2g} nats apart on a request of {len(seen)} tokens")
            self._checked_length = max(self._checked_length, len(seen))

    def _tolerance(self, n_scored: int) -> float:
        return tolerance(self._lm, n_scored)

    def _pays(self, trie: Trie, check_lengths: Sequence[int]) -> bool:
        """Whether sharing promises to be clearly faster, self-check included.

        Costs are in tokens' worth of time: 1 for a token through the layers, `_head_share` for its logits, and a
        little for starting a forward.

        Raises:
            UnsupportedCacheError: the model was asked whether it goes on from its cache, and doesn't.
        """
        overhead = forward_overhead(self._lm.device)
        batch = self._lm.batch_size if isinstance(self._lm.batch_size, int) else 8
        separate = trie.separate_lengths
        plain = separate.sum() * (1 + self._head_share) + overhead * -(-len(separate) // batch)
        logits = len(trie.scored_rows) * self._head_share
        checks = sum(length + 2 * overhead for length in check_lengths)
        return self._forward.costs_at_most(trie, float(_MARGIN * plain - logits - checks))

    def _remember(self, request: Request, answer: Answer) -> None:
        if request[0] is not None:
            self._lm.cache_hook.add_partial("loglikelihood", request[0], answer)

    def _all_share(self, mine: bool) -> bool:
        """Whether this process takes shared prefixes: where lm_eval's path is a joint one, all do or none.

        With batch_size=auto lm_eval finds a size together with all processes, which hangs if one alone asks.
        """
        if self._lm.world_size == 1 or self._lm.batch_size_per_gpu != "auto":
            return mine
        return bool(self._lm.all_gather(torch.tensor([int(mine)], device=self._lm.device)).min())

    def _harness(
        self, requests: list[Request], disable_tqdm: bool, override_bs: int | None, reason: str, alone: bool = False
    ) -> list[Answer]:
        """lm_eval's own path; ``alone``: the other processes are not on it, so nothing may be asked of them."""
        self.stats = ScoringStats("harness", reason=reason, requests=len(requests))
        if alone and override_bs is None and self._lm.world_size > 1:
            override_bs = 1
        return HFLM._loglikelihood_tokens(self._lm, requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _say(self, text: str, level: int = logging.WARNING) -> None:
        if text not in self._said:
            self._said.add(text)
            log.log(level, text)


def _sibling(suspect: int | None, inputs: Sequence[list[int]]) -> int | None:
    """The request that goes longest with the suspect before it branches off; None if none does."""
    if suspect is None:
        return None
    own = np.asarray(inputs[suspect])
    shared = [common_prefix(own, np.asarray(ids)) for ids in inputs]
    branches = [i for i, ids in enumerate(inputs) if shared[i] < len(ids)]
    return max(branches, key=shared.__getitem__, default=None)


def truncated_input(context: Sequence[int], option: Sequence[int], max_length: int) -> list[int]:
    """What a causal model sees of a request, as in lm_eval: cut from the left, without the last option token."""
    return [*context, *option][-(max_length + 1) :][:-1]


def _window(config: Any) -> int:
    """How far a layer of the model looks back at most, where that is limited; else 0."""
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return max([size for size in sizes if isinstance(size, int)], default=0)


def _head_share(model: Any) -> float:
    """Cost of one token's logits and their log-softmax, as a part of the cost of its layers."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    outer = {id(p): p.numel() for part in (head, embeddings) if part is not None for p in part.parameters()}
    layers = sum(p.numel() for p in model.parameters()) - sum(outer.values())
    size = sum(p.numel() for p in head.parameters()) if head is not None else 0
    return float(size / max(1, layers))


def tolerance(lm: Any, n_scored: int) -> float:
    """Largest |Δ log p| of `n_scored` tokens that rounding explains; a wrong mask is off by tenths of nats."""
    model = base_model(lm)
    dtype = lm.mixed_precision_dtype or (torch.bfloat16 if getattr(model, "is_quantized", False) else model.dtype)
    base, each = {torch.float32: (1e-4, 1e-5), torch.float16: (0.02, 0.01)}.get(dtype, (0.1, 0.05))
    return base + each * n_scored
