"""Decoding of one or several prompts, greedily or with beams, with the tokens at hand.

What it is for: a fusion that generates (see `generation`) needs what lm_eval's ``generate_until`` doesn't give: the
tokens of continuations, several of one prompt, and those of several prompts together. What it does not do: sampling,
encoder-decoders, or deciding what is marginalised.

The one idea: the prompts are one left-padded batch of the model's own ``generate``, and a logits processor gives all
rows the same next-token distribution, that of their mixture: so all choose the same tokens, each behind its own prompt
and in its own cache, and stop together, where lm_eval's own generation would. With beams a prompt has several rows, and
the n-th of each prompt are mixed: as their scores are the same numbers, all prompts keep the same beams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.scoring.scorer import tolerance

__all__ = ["Mixture", "check_padding", "continuations", "prompt_ids", "text_of"]

_NO_BEAM = -1e8
"""What transformers gives a place in its list of finished beams that none has taken is below this."""

_COMPARED = 5
"""Likeliest tokens of a prompt whose log-probabilities are compared; rounding is largest among the unlikely ones."""


class Mixture(LogitsProcessor):
    """Gives every row ``LSE over k of (prior k + log softmax(logits k))``.

    Args:
        prior: log-weights of the prompts, shape (prompts,), that add up to 1. Each has as many rows as the others, one
            behind the other; the n-th ones are mixed.
    """

    def __init__(self, prior: torch.Tensor) -> None:
        self._prior = prior[:, None, None]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: D102
        each = scores.float().log_softmax(-1).view(len(self._prior), -1, scores.shape[-1])
        mixed = torch.logsumexp(self._prior + each, dim=0, keepdim=True)
        return mixed.repeat(len(self._prior), 1, 1).view(scores.shape)


class _Stopped(StoppingCriteria):
    """Tells of each row whether a stop string stands in its continuation; lm_eval's own asks of all together.

    Args:
        lm: whose tokenizer decodes.
        width: tokens of the prompts.
        stop: the strings.
    """

    def __init__(self, lm: Any, width: int, stop: Sequence[str]) -> None:
        self._lm, self._width, self._stop = lm, width, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> Any:
        found = [self.stands(row) for row in input_ids[:, self._width :].tolist()]
        return torch.tensor(found, device=input_ids.device)

    def stands(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string is in the text of tokens."""
        text = self._lm.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return any(one in text for one in self._stop)

    def cut(self, tokens: Sequence[int]) -> int:
        """How many of the tokens there are up to the first that ends them; what follows fills up the row."""
        ends = _ends(self._lm)
        return next(
            (n for n in range(1, len(tokens) + 1) if tokens[n - 1] in ends or self.stands(tokens[:n])), len(tokens)
        )


def prompt_ids(lm: Any, prompt: str, gen_kwargs: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt as ``HFLM.generate_until`` would read it, alone in its batch."""
    room = lm.max_length - _settings(lm, gen_kwargs)[1]
    ids, _ = lm.tok_batch_encode([prompt], left_truncate_len=room, truncation=lm.truncation)
    found: list[int] = ids[0].tolist()
    return found


def continuations(
    lm: Any, rows: Sequence[Sequence[int]], gen_kwargs: Mapping[str, Any], prior: Sequence[float] | None = None
) -> list[list[int]]:
    """The likeliest continuations, the likeliest first, each with the token or the stop string that ends it.

    Args:
        lm: an ``HFLM``.
        rows: token ids of the prompts; one, or several with a `prior`.
        gen_kwargs: as a task gives them; ``until``, the number of tokens and ``num_beams`` count.
        prior: log-weights of the prompts.

    Returns:
        One continuation if there is one beam, which is the greedy one; else as many as there are beams.
    """
    stop, most = _settings(lm, gen_kwargs)
    beams, more = int(gen_kwargs.get("num_beams") or 1), {}
    if prior is not None:
        weights = torch.tensor(list(prior), dtype=torch.float32, device=lm.device)
        more["logits_processor"] = LogitsProcessorList([Mixture(weights)])
    with torch.inference_mode():
        if beams > 1:
            return _beams(lm, rows, stop, most, beams, **more)
        found, width = _generate(lm, rows, stop, most, **more)
    return [found[0, width:].tolist()]


def _beams(
    lm: Any, rows: Sequence[Sequence[int]], stop: list[str], most: int, beams: int, **more: Any
) -> list[list[int]]:
    """The finished beams of the first prompt, by the sum of their log-probabilities: no length is favoured."""
    ids, mask = _padded(lm, rows)
    width = ids.shape[1]
    stopped = _Stopped(lm, width, stop)
    with torch.autocast(lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None):
        found = lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_length=width + most,
            stopping_criteria=StoppingCriteriaList([stopped]),
            pad_token_id=lm.tokenizer.pad_token_id,
            use_cache=True,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0,
            early_stopping=False,
            output_scores=True,
            return_dict_in_generate=True,
            **more,
        )
    kept = [
        row[: stopped.cut(row)]
        for row, score in zip(found.sequences[:beams, width:].tolist(), found.sequences_scores.tolist(), strict=False)
        if score > _NO_BEAM
    ]
    return [list(each) for each in dict.fromkeys(map(tuple, kept))]


def text_of(lm: Any, tokens: Sequence[int], gen_kwargs: Mapping[str, Any]) -> str:
    """What ``HFLM.generate_until`` makes of the tokens of a continuation: cut at stop strings, without thoughts."""
    end, tokens = lm.think_end_token, list(tokens)
    thought = isinstance(end, int) and end in tokens
    if thought:
        tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
    text = lm.tok_decode(tokens)
    return postprocess_generated_text(
        generation=text.lstrip() if isinstance(end, int) else text,
        stop=_settings(lm, gen_kwargs)[0],
        think_end_token=end if isinstance(end, str) else None,
    )


def check_padding(lm: Any, rows: Sequence[Sequence[int]]) -> None:
    """Compares the next tokens of prompts side by side with those of each alone, twice in a row.

    Raises:
        ModelError: they differ by more than rounding, so that the model reads what fills up the shorter ones.
    """
    how = {"output_logits": True, "return_dict_in_generate": True}
    apart = 0.0
    with torch.inference_mode():
        together, width = _generate(lm, rows, [], 2, **how)
        for place, row in enumerate(rows):
            alone, start = _generate(lm, [row], [], 2, **how)
            for step, (one, all_rows) in enumerate(zip(alone.logits, together.logits, strict=False)):
                expected, found = (logits.float().log_softmax(-1) for logits in (one[0], all_rows[place]))
                likeliest = expected.topk(_COMPARED).indices
                apart = max(apart, (expected - found)[likeliest].abs().max().item())
                if alone.sequences[0, start + step] != together.sequences[place, width + step]:
                    break  # two tokens about as likely: what follows them is not to be compared
    if not apart <= tolerance(lm, 1):
        raise ModelError(
            "fusion=rag-token can't generate with this model: prompts of different lengths, side by side, are not read "
            f"as each alone ({apart:.2g} nats apart), which is so where a model reads the padding. Pass "
            "fusion=rag-sequence, which reads each alone, or fusion=concat."
        )


def _settings(lm: Any, gen_kwargs: Mapping[str, Any]) -> tuple[list[str], int]:
    """Stop strings, the end of text among them, and the most tokens to generate."""
    said = normalize_gen_kwargs(dict(gen_kwargs), lm.max_gen_toks)
    stop = handle_stop_sequences(said.get("until"), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False))
    return stop, int(said["max_gen_toks"])


def _ends(lm: Any) -> set[int]:
    """Tokens that end a text."""
    said = lm.model.generation_config.eos_token_id
    return {lm.eot_token_id, *(said if isinstance(said, list) else [said])}


def _padded(lm: Any, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and the mask of what isn't padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(list(row))
        mask[place, width - len(row) :] = 1
    return ids.to(lm.device), mask.to(lm.device)


def _generate(lm: Any, rows: Sequence[Sequence[int]], stop: list[str], most: int, **more: Any) -> tuple[Any, int]:
    """What ``HFLM._model_generate`` makes of rows padded on the left, and their width."""
    ids, mask = _padded(lm, rows)
    found = lm._model_generate(
        context=ids,
        attention_mask=mask,
        max_length=ids.shape[1] + most,
        stop=stop,
        do_sample=False,
        num_beams=1,
        **more,
    )
    return found, ids.shape[1]
