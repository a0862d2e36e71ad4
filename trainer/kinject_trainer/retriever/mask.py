"""BERT's masking: which tokens are to be told, and what stands in their place.

What it is for: a collator for transformers' Trainer. What it does not do: it trains nothing.

The one idea: "15 % of the tokens" is a count. transformers' own collator tosses a coin for each token, so that a text
has 15 % of its tokens chosen only on average, and a short one often none (a batch of these has a loss that is not a
number). Here each text's ordinary tokens are put into a random order, and the first 15 % of them are chosen, rounded,
and at least one::

    [CLS] the mill was opened by anna berg [SEP] [PAD]      7 ordinary tokens: round(.15 · 7) = 1 is chosen
          .31 .77 .02  .64   .81 .40  .93                   "was": its number is the lowest

What becomes of a chosen token is drawn for each: [MASK] (80 %), a random ordinary token (10 %), itself (10 %).
Source: Devlin et al. (arXiv 1810.04805), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

__all__ = ["ExactMasking", "choose"]

_NO_LOSS = -100
_MASKED, _RANDOM = 0.8, 0.1


def choose(ordinary: torch.Tensor, probability: float, generator: torch.Generator | None) -> torch.Tensor:
    """Which tokens are chosen.

    Args:
        ordinary: what may be chosen: neither special nor padding, [texts, length].
        probability: share of a text's ordinary tokens.
        generator: of the draws.

    Returns:
        True where chosen, of the same shape: in each row round(probability · ordinary tokens), and at least one where
        it has any.
    """
    there = ordinary.sum(dim=1)
    wanted = (there * probability).round().long().clamp(min=1).minimum(there)
    draws = torch.rand(ordinary.shape, generator=generator).masked_fill(~ordinary, 2.0)
    places = draws.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return places < wanted[:, None]


@dataclass
class ExactMasking(DataCollatorForLanguageModeling):
    """transformers' collator with the count of `choose`; its seed, padding and special tokens are its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        special = set(self.tokenizer.all_special_ids)
        self.words = torch.tensor([number for number in range(len(self.tokenizer)) if number not in special])

    def torch_mask_tokens(
        self, inputs: Any, special_tokens_mask: Any | None = None, offset_mapping: Any | None = None
    ) -> tuple[Any, Any]:
        """The ids with what stands in the place of the chosen, and the chosen ones' own ids as labels."""
        if special_tokens_mask is None:
            special_tokens_mask = torch.tensor(
                [
                    self.tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
                    for row in inputs.tolist()
                ]
            )
        chosen = choose(~special_tokens_mask.bool(), float(self.mlm_probability or 0), self.generator)
        labels = inputs.masked_fill(~chosen, _NO_LOSS)
        fate = torch.rand(inputs.shape, generator=self.generator)
        drawn = self.words[torch.randint(len(self.words), inputs.shape, generator=self.generator)]
        masked = inputs.masked_fill(chosen & (fate < _MASKED), self.tokenizer.mask_token_id)
        random = chosen & (fate >= _MASKED) & (fate < _MASKED + _RANDOM)
        return torch.where(random, drawn, masked), labels
