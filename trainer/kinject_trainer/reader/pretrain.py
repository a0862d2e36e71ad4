"""Train the reader from scratch: ``python -m kinject_trainer.reader.pretrain --out runs/reader``.

Plain causal-LM training with per-token loss weights. Muon moves the matrices, AdamW the rest. Every random draw is a
function of seed and step, and a checkpoint holds all state, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from kinject_trainer.reader.induction import wire_induction
from kinject_trainer.reader.mixture import Mixture, Phase, Row, collate, training_kinds
from kinject_trainer.reader.probe import probe
from kinject_trainer.reader.vocabulary import train_tokenizer
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.realise import realise
from lm_eval_kinject.corpus.sources.newswire.world import World

_log = logging.getLogger(__name__)

WARM_UP, DECAY = 60, 0.3  # steps; share of the steps
LOG_EVERY = 10  # steps
MATRIX_RATE, OTHER_RATE = 0.008, 2e-3


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A fresh reader: 3.1 M parameters, plain Llama architecture, copying wired up."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    wire_induction(model, seed)
    return model


def make_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, trained first if it isn't there yet."""
    if not (folder / "tokenizer.json").exists():
        world = World(1904, training_kinds(), 3600, "reader")
        examiner = Examiner(world.events, 0)
        rng = random.Random(0)
        texts = [realise(event, 0, stream="reader") for event in world.events]
        for event in world.events[:1500]:
            question = examiner.ask(event, rng.choice(sorted(event.kind.questions)), "")
            texts.append(f"Question: {question.question}\nAnswer: {question.choices[question.answer]}\n\n")
            texts.append(f"{question.question}\nA. {question.choices[0]}\nB. {question.choices[1]}\nAnswer: A\n\n")
        train_tokenizer(texts).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak rate at a step: linear warm-up, flat, then linear to zero over the last part."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP, left)


def weighted_loss(model: LlamaForCausalLM, rows: list[Row], pad: int) -> torch.Tensor:
    """Mean negative log-likelihood of a micro-batch under its tokens' weights."""
    ids, weights = collate(rows, pad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    target = weights[:, 1:].flatten()
    return (nll * target).sum() / target.sum()


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write all state, atomically."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def train(arguments: argparse.Namespace) -> None:
    """Run, or go on with, a training: the reading phase, then the recall phase from its weights."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    reader = arguments.start or out / "reading"
    if not arguments.start and not (reader / "config.json").exists():
        tokenizer = make_tokenizer(out)
        run_phase("reading", new_model(tokenizer, arguments.seed), tokenizer, reader, arguments)
    if not (out / "model" / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(reader)
        model = LlamaForCausalLM.from_pretrained(reader, dtype=torch.float32)
        run_phase("recall", model, tokenizer, out / "model", arguments)


def run_phase(
    phase: Phase,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    result: Path,
    arguments: argparse.Namespace,
) -> None:
    """Train ``model`` through one phase and save it, in bf16, in ``result``; an unfinished phase goes on."""
    out: Path = arguments.out
    steps = {"reading": arguments.reading_steps, "recall": arguments.recall_steps}[phase]
    mixture = Mixture(tokenizer, arguments.seed)
    optimizers = make_optimizers(model)
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    first = 0
    checkpoint = out / f"{phase}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    model.train()
    seen, began = 0, time.time()
    losses: dict[str, list[float]] = {}
    for step in range(first, steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate(step, steps)
        batches = mixture.step(phase, step, step / steps, arguments.tokens)
        for batch in batches:
            loss = weighted_loss(model, batch.rows, tokenizer.pad_token_id)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is not finite at step {step}; the last checkpoint is {checkpoint}")
            (loss / len(batches)).backward()
            losses.setdefault(batch.name, []).append(loss.item())
            seen += sum(len(r.ids) for r in batch.rows)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        last = step + 1 == steps
        probes = last or (step + 1) % arguments.probe_every == 0
        if probes or (step + 1) % LOG_EVERY == 0:
            entry: dict[str, Any] = {
                "phase": phase,
                "step": step,
                "losses": {name: round(sum(values) / len(values), 4) for name, values in losses.items()},
                "norm": round(norm, 3),
                "tokens": seen,
                "tokens_per_second": round(seen / (time.time() - began)),
            }
            losses = {}
            if probes:
                entry["probe"] = {name: round(value, 3) for name, value in probe(model, mixture).items()}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            _log.info("%s", json.dumps(entry))
        if (step + 1) % arguments.save_every == 0 or last:
            save_checkpoint(checkpoint, model, optimizers, step + 1)
    tokenizer.save_pretrained(result)
    model.to(torch.bfloat16).save_pretrained(result)


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished run there goes on")
    parser.add_argument("--start", type=Path, help="a reader to start the recall phase from, without a reading phase")
    parser.add_argument("--reading-steps", type=int, default=2400)
    parser.add_argument("--recall-steps", type=int, default=3600)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe-every", type=int, default=400, help="steps")
    parser.add_argument("--save-every", type=int, default=50)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
