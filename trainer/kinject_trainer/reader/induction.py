"""Weights to start from in which copying is already wired up.

What it is for: a small model trained on few tokens spends most of them before it first copies anything out of its
context: that takes two attention heads that are of use only together (a head that looks at the token before, and in a
later layer one that looks for earlier places where that token was the present one; Olsson et al., arXiv 2209.11895).
`wire_induction` starts training with a rough form of both, in the plain Llama architecture: numbers in the weights,
nothing else. Everything is trained from there. What it does not do: it knows no token, word or task.

How: coordinate 0 of every embedding holds the same constant. To a head whose queries and keys read only that
coordinate every token looks the same, so that rotary position alone decides where it looks: turned by one position,
to the token before. It copies a projection of that token to a subspace, where the later heads' keys find it, while
their queries read the same projection of the present token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

EMBEDDING_SCALE, CONSTANT = 0.04, 6.0  # standard deviation of embeddings; the constant, in such deviations
PREVIOUS_HEADS = ((0, 0, 1), (0, 1, 2))  # layer, head, how many tokens back
MATCHING_HEADS = ((1, 0), (2, 0), (3, 0))  # layer, head
POSITION_GAP = 12.0  # by how much the wanted position's score leads its neighbours', nats
MATCH_GAIN, WRITE_GAIN, COPY_GAIN = 5.0, 3.0, 4.0
_FAST = 0.25  # radians a token: rotary frequencies that tell neighbours apart
_SLOW = 1 / 400  # frequencies that hardly turn over a prompt's length: content can be compared there


@torch.no_grad()
def wire_induction(model: LlamaForCausalLM, seed: int) -> None:
    """Overwrites embeddings and five heads of a fresh model, in place.

    Args:
        model: with tied embeddings and as many key heads as query heads, at least four layers and two heads.
        seed: of the random projections.
    """
    config = model.config
    width = config.hidden_size
    head_width = width // config.num_attention_heads
    draw = torch.Generator().manual_seed(seed)
    layers = model.model.layers
    for layer in layers:  # as GPT-2: what 2 x layers branches add up to should not drown the embedding
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0, EMBEDDING_SCALE, generator=draw)
    embeddings[:, 0] = CONSTANT * EMBEDDING_SCALE

    frequencies = float(config.rope_parameters["rope_theta"]) ** (-torch.arange(head_width // 2) / (head_width // 2))
    slow = (frequencies < _SLOW).nonzero()[:, 0]
    comparable = torch.cat([slow, slow + head_width // 2])
    content = torch.zeros(len(comparable), width)
    content[:, 1:] = _orthonormal(len(comparable), width - 1, draw)

    shelves: dict[int, Tensor] = {}
    for layer, head, back in PREVIOUS_HEADS:
        rows = slice(head * head_width, (head + 1) * head_width)
        attention = layers[layer].self_attn
        attention.q_proj.weight[rows], attention.k_proj.weight[rows] = _look_back(frequencies, back, width)
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows][: len(content)] = content
        shelf = torch.zeros(width, len(content))
        shelf[1:] = _orthonormal(width - 1, len(content), draw)
        attention.o_proj.weight[:, rows] = 0.0
        attention.o_proj.weight[:, rows][:, : len(content)] = WRITE_GAIN * EMBEDDING_SCALE * shelf
        shelves[back] = shelf
    for layer, head in MATCHING_HEADS:
        rows = slice(head * head_width, (head + 1) * head_width)
        attention = layers[layer].self_attn
        for weight, reader in ((attention.q_proj.weight, content), (attention.k_proj.weight, shelves[1].T)):
            weight[rows] = 0.0
            weight[rows][comparable] = math.sqrt(MATCH_GAIN) * reader
        value = torch.zeros(head_width, width)
        value[:, 1:] = _orthonormal(head_width, width - 1, draw)
        attention.v_proj.weight[rows] = value
        attention.o_proj.weight[:, rows] = COPY_GAIN * EMBEDDING_SCALE * value.T


def _look_back(frequencies: Tensor, back: int, width: int) -> tuple[Tensor, Tensor]:
    """Weights of queries and keys, [head width, width] each, whose product peaks ``back`` tokens before the query."""
    # Only fast frequencies: the slow ones would add the same large number everywhere, and with it its noise.
    fast = frequencies[frequencies > _FAST]
    half = len(frequencies)
    constant = CONSTANT / math.sqrt(1 + CONSTANT**2 / width)  # after RMSNorm
    lead = float((1 - torch.cos(fast)).sum())
    size = math.sqrt(POSITION_GAP * math.sqrt(2 * half) / (constant**2 * lead))
    query, key = torch.zeros(2 * half, width), torch.zeros(2 * half, width)
    query[: len(fast), 0] = size
    key[: len(fast), 0] = size * torch.cos(back * fast)
    key[half : half + len(fast), 0] = size * torch.sin(back * fast)
    return query, key


def _orthonormal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """A random matrix with orthonormal rows or columns, whichever are fewer."""
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=draw))[0]
    return tall if rows >= columns else tall.T
