"""Runs packs of a token trie through a model and reads off the log-probabilities that are scored.

For: `scorer`, which decides whether a model qualifies and what to score. Not for: masks (`attention`) or the trie
(`plan`).

The one idea: stock modelling code does the whole forward. It gets the pack's tokens as one sequence, their own
position ids and the scored rows as ``logits_to_keep``; during the forward the model's attention is
`attention.shared_prefix_attention`, which also keeps the keys and values that the next pack builds on. No mask, cache
class or layer of transformers is replaced or copied.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from lm_eval_kinject.scoring.attention import (
    ATTENTION_NAME,
    KeyValues,
    PackAttention,
    UnsupportedAttentionError,
    handed_to_layers,
    shared_prefix_attention,
)
from lm_eval_kinject.scoring.last_block import LastBlock
from lm_eval_kinject.scoring.plan import Pack, Trie, cut_pack

_LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**24}  # entries of the float32 copies made while reading: 8 and 64 MiB
_SHORT_ON_CPU = 512, 40 * 2**20  # a forward of short prompts: at least so many tokens, and bytes of activations
_FEWEST_ROWS = 256  # with fewer, K=0 takes 3 % longer: the output matrix is read once a forward
_WIDE = 128, 2**24  # but where these are over 64 MiB, fewer, as several K in one pass read many rows a forward


@dataclass
class Budget:
    """How much one forward may hold; `halve` it when memory runs out.

    Attributes:
        tokens: most tokens in a forward.
        rows: most rows of logits in a forward; a row is as wide as the vocabulary.
    """

    tokens: int
    rows: int

    def halve(self) -> bool:
        """Halves both numbers; False if there was nothing left to halve."""
        if self.tokens <= 1 and self.rows <= 1:
            return False
        self.tokens, self.rows = max(1, self.tokens // 2), max(1, self.rows // 2)
        return True


def starting_budget(model: PreTrainedModel) -> Budget:
    """A budget that fits the memory at hand, on the careful side.

    A forward gets a quarter of the free memory for its activations and an eighth for its logits, up to where more
    tokens no longer make it faster: on a CPU that is 1024 tokens, and 32 MiB of logits, or 256 rows of a wide
    vocabulary within 64 MiB, or 128 of a very wide one.
    """
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    least, entries = _WIDE
    fewest = min(_FEWEST_ROWS, max(least, entries // config.vocab_size))
    on_cpu = Budget(1024, max(fewest, 2**23 // config.vocab_size))
    most = Budget(8192, 4096) if device.type == "cuda" else on_cpu
    free = free_memory(device)
    if free is None:
        return most
    return Budget(
        tokens=min(most.tokens, max(64, free // 4 // _activation_bytes(config))),
        rows=min(most.rows, max(16, free // 8 // (12 * config.vocab_size))),
    )


def _activation_bytes(config: PreTrainedConfig) -> int:
    """About what one token's activations take while a layer works, in float32."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    widest = max(inner) if isinstance(inner, (list, tuple)) else inner
    return int(4 * (16 * config.hidden_size + 4 * widest))


def tokens_for_short_prompts(config: PreTrainedConfig, device: torch.device, longest: int) -> int | None:
    """Most tokens of a forward where no prompt is longer than `longest` tokens; None for as many as the budget says.

    lm_eval's memory follows the prompt's length, so a CPU's forward stays near it where that costs no time: half of
    the usual tokens do where no keys and values have to be carried from pack to pack.
    """
    least, activations = _SHORT_ON_CPU
    if device.type != "cpu":
        return None
    return max(least, activations // _activation_bytes(config), 2 * longest)


def forward_overhead(device: torch.device) -> int:
    """What starting a forward costs, in tokens' worth of time."""
    return 32 if device.type == "cpu" else 512


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left; None where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        said = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", said, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@dataclass(frozen=True, eq=False)
class PackScores:
    """What one pack yields.

    Attributes:
        pairs: ``[p]`` which entries of the trie's ``rows`` and ``targets`` were read off.
        log_probs: ``[p]`` log-probability of each target, in nats.
        greedy: ``[p]`` whether the target has the highest logit.
    """

    pairs: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]


class TreeForward:
    """Scores tries with one model.

    Args:
        model: a causal language model that `support.reason_unsupported` has nothing against, or the PEFT model
            around it.
        device: where the model takes its input.
        autocast_dtype: lm_eval's ``mixed_precision_dtype``.
        budget: limits of one forward; halved in place, for good, when memory runs out.
    """

    def __init__(self, model: Any, device: torch.device, autocast_dtype: torch.dtype | None, budget: Budget) -> None:
        self._model = model
        self._device = device
        self._autocast_dtype = autocast_dtype
        self.budget = budget
        self.forwarded_tokens = 0
        self._config = model.config.get_text_config()
        parts = (part.config for part in model.modules() if isinstance(part, PreTrainedModel))
        self._last_block = LastBlock(model)
        self._configs = list({id(config): config for config in parts}.values())

    def costs_at_most(self, trie: Trie, limit: float) -> bool:
        """Whether forwarding a trie takes at most `limit` tokens' worth of time."""
        return len(trie) + forward_overhead(self._device) * (1 + len(trie) // self.budget.tokens) <= limit

    def score(self, trie: Trie) -> Iterator[PackScores]:
        """Forwards the trie pack by pack, each token once.

        Raises:
            UnsupportedAttentionError: the model needs something that tree attention doesn't compute.
        """
        by_row = np.argsort(trie.rows, kind="stable")
        rows_sorted = trie.rows[by_row]
        start, path, past = 0, np.empty(0, np.int64), KeyValues()
        longest = int(trie.positions.max(initial=0)) + 1
        enough = tokens_for_short_prompts(self._config, self._device, longest) or self.budget.tokens
        while start < len(trie):
            pack = cut_pack(trie, start, path, min(self.budget.tokens, enough), self.budget.rows)
            first, last = np.searchsorted(rows_sorted, [pack.start, pack.stop])
            result = self._unless_out_of_memory(partial(self._forward, trie, pack, past, by_row[first:last]))
            if result is None:
                continue
            scores, past = result
            start, path = pack.stop, pack.next_path
            yield scores

    def _unless_out_of_memory(
        self, forward: Callable[[], tuple[PackScores, KeyValues]]
    ) -> tuple[PackScores, KeyValues] | None:
        """The result of `forward`, or None after halving the budget because memory ran out."""
        try:
            return forward()
        except Exception as error:
            if not is_out_of_memory(error) or not self.budget.halve():
                raise
        # Outside the handler: the error's traceback holds the tensors of the failed forward.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _forward(
        self, trie: Trie, pack: Pack, past: KeyValues, pairs: npt.NDArray[np.int64]
    ) -> tuple[PackScores, KeyValues]:
        attention = PackAttention(trie, pack, past, self._last_block.attention)
        rows = np.asarray(attention.scored_rows, np.int64)
        row_of_pair = np.searchsorted(rows, trie.rows[pairs] - pack.start)
        tokens, positions = trie.tokens[pack.start : pack.stop], trie.positions[pack.start : pack.stop]
        with (
            _tree_attention(self._configs),
            handed_to_layers(attention),
            self._last_block.only_scored_rows(attention),
        ):
            logits = self._logits(tokens, rows, position_ids=self._batch_of_one(positions))
        if not attention.layers_seen:
            raise UnsupportedAttentionError("the model doesn't use the registered attention function")
        self.forwarded_tokens += pack.n_tokens
        log_probs, greedy = read_logits(logits, row_of_pair, trie.targets[pairs])
        return PackScores(pairs, log_probs, greedy), attention.kept

    def plain(self, tokens: Sequence[int], option: Sequence[int]) -> tuple[float, bool]:
        """Scores one request with the model's own attention, as lm_eval does but for the logits it throws away.

        Args:
            tokens: what the model sees: context and option without the last option token.
            option: the tokens to score.

        Returns:
            The option's log-probability in nats, and whether it is the greedy one.
        """
        places = np.arange(len(option))
        logits = self._logits(np.asarray(tokens, np.int64), len(tokens) - len(option) + places)
        log_probs, greedy = read_logits(logits, places, np.asarray(option, np.int64))
        return float(log_probs.sum()), bool(greedy.all())

    def _logits(self, tokens: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], **kwargs: Any) -> torch.Tensor:
        """Logits ``[rows, vocabulary]`` at some rows of one sequence."""
        with (
            torch.no_grad(),
            torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None),
        ):
            return self._model(
                input_ids=self._batch_of_one(tokens),
                use_cache=False,
                # A list, not a tensor: with the model spread over devices, the rows are picked on the last of them.
                logits_to_keep=rows.tolist(),
                **kwargs,
            ).logits[0]

    def _batch_of_one(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor(values, device=self._device)[None]


def read_logits(
    logits: torch.Tensor, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probabilities of some tokens, without the log-softmax of the rest.

    Args:
        logits: ``[rows, vocabulary]`` of any float type; read as float32, a few rows at a time.
        rows: ``[p]`` row of each token.
        targets: ``[p]`` the tokens.

    Returns:
        ``[p]`` log-probabilities in nats, and ``[p]`` whether the token is the row's first maximum.
    """
    targets_at, rows_at = (torch.as_tensor(values, device=logits.device) for values in (targets, rows))
    normalizers, best = [], []
    at_once = _LOGITS_AT_ONCE.get(logits.device.type, 2**24)
    for part in logits.split(max(1, at_once // logits.shape[1])):
        normalizers.append(torch.logsumexp(part.float(), dim=-1))
        best.append(part.argmax(dim=-1))
    if not normalizers:
        return np.empty(0, np.float64), np.empty(0, np.bool_)
    log_probs = logits[rows_at, targets_at].float() - torch.cat(normalizers)[rows_at]
    greedy = torch.cat(best)[rows_at] == targets_at
    return log_probs.double().cpu().numpy(), greedy.cpu().numpy()


@contextlib.contextmanager
def _tree_attention(configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    """While entered, the models that have these configurations call our attention function; afterwards their own."""
    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    own = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, implementation in zip(configs, own, strict=True):  # parents first: they set their children too
            config._attn_implementation = implementation


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or where a CPU allocation was refused."""
    if isinstance(error, MemoryError):
        return True
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in said)
