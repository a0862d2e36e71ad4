"""Greedy decoding of one continuation for one or several prompts, with the tokens at hand.

What it is for: a fusion that generates (see `generation`) needs what lm_eval's ``generate_until`` doesn't give: the
tokens of a continuation, and one continuation of several prompts together. What it does not do: beams or sampling,
encoder-decoders, or deciding what is marginalised.

The one idea: the prompts are one left-padded batch of ``HFLM._model_generate``, and a logits processor gives all rows
the same next-token distribution, that of their mixture: so all choose the same token, each behind its own prompt and in
its own cache, and stop together, where lm_eval's own generation would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import LogitsProcessor, LogitsProcessorList

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.scoring.scorer import tolerance

__all__ = ["Mixture", "check_padding", "greedy", "prompt_ids", "text_of"]

_COMPARED = 5
"""Likeliest tokens of a prompt whose log-probabilities are compared; rounding is largest among the unlikely ones."""


class Mixture(LogitsProcessor):
    """Gives every row ``LSE over k of (prior k + log softmax(logits k))``.

    Args:
        prior: log-weights of the rows, shape (rows,), that add up to 1.
    """

    def __init__(self, prior: torch.Tensor) -> None:
        self._prior = prior[:, None]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: D102
        mixed = torch.logsumexp(self._prior + scores.float().log_softmax(-1), dim=0, keepdim=True)
        return mixed.repeat(len(scores), 1)


def prompt_ids(lm: Any, prompt: str, gen_kwargs: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt as ``HFLM.generate_until`` would read it, alone in its batch."""
    room = lm.max_length - _settings(lm, gen_kwargs)[1]
    ids, _ = lm.tok_batch_encode([prompt], left_truncate_len=room, truncation=lm.truncation)
    found: list[int] = ids[0].tolist()
    return found


def greedy(
    lm: Any, rows: Sequence[Sequence[int]], gen_kwargs: Mapping[str, Any], prior: Sequence[float] | None = None
) -> list[int]:
    """The greedy continuation, with the token or the stop string that ends it.

    Args:
        lm: an ``HFLM``.
        rows: token ids of the prompts; one, or several with a `prior`.
        gen_kwargs: as a task gives them; ``until`` and the number of tokens count.
        prior: log-weights of the prompts.
    """
    stop, most = _settings(lm, gen_kwargs)
    more = {}
    if prior is not None:
        weights = torch.tensor(list(prior), dtype=torch.float32, device=lm.device)
        more["logits_processor"] = LogitsProcessorList([Mixture(weights)])
    with torch.inference_mode():
        found, width = _generate(lm, rows, stop, most, **more)
    continuation: list[int] = found[0, width:].tolist()
    return continuation


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


def _generate(lm: Any, rows: Sequence[Sequence[int]], stop: list[str], most: int, **more: Any) -> tuple[Any, int]:
    """What ``HFLM._model_generate`` makes of rows padded on the left, and their width."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(list(row))
        mask[place, width - len(row) :] = 1
    found = lm._model_generate(
        context=ids.to(lm.device),
        attention_mask=mask.to(lm.device),
        max_length=width + most,
        stop=stop,
        do_sample=False,
        num_beams=1,
        **more,
    )
    return found, width
