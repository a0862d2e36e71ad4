"""Train the reader of an edition: ``python -m kinject_trainer.reader.pretrain --edition 2 --out runs/reader``.

Plain causal-LM training with per-token loss weights. Muon moves the matrices, AdamW the rest. Every random draw is a
function of seed and step, and a checkpoint holds all state, so a killed run goes on where it stopped: the same command
again. What it does not do: it chooses nothing, and looks at no question of a bundled edition.

    --edition 2 --start FOLDER    from the weights and tokenizer of a reader that can read: the mixed phase alone
    --edition 2                   from scratch: the reading phase of the edition, then the mixed one
    --probe-after-training        at the end a short FT-par, with reading before and after (`endurance`)

The result is ``OUT/model``, the log ``OUT/log.jsonl``. How much of what is in a step: ``--shares`` (`mixture.Shares`).

**On a GPU** the same command with ``--device cuda``. Python makes some 200 k tokens of rows a second on one core, which
``--workers 4`` do beside the training; ``--tokens 8192`` makes micro-batches large enough to be worth it, four times
the tokens a step, for which half the steps (``--mixed-steps 1600``) are a fair start. Forward passes are in bf16 by
autocast on either device, weights and optimizers in fp32. A run can go on on the other device, though not to the bit.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from kinject_trainer.errors import TrainingError
from kinject_trainer.reader.average import Average
from kinject_trainer.reader.endurance import endurance
from kinject_trainer.reader.induction import wire_induction
from kinject_trainer.reader.mixture import Batch, Mixture, Phase, Row, Shares, collate, phases, training_kinds
from kinject_trainer.reader.probe import probe
from kinject_trainer.reader.vocabulary import train_tokenizer
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.kind import EDITIONS
from lm_eval_kinject.corpus.sources.newswire.realise import realise
from lm_eval_kinject.corpus.sources.newswire.world import World
from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.provenance import publish_folder, read_json, write_json

_log = logging.getLogger(__name__)

WARM_UP, DECAY = 60, 0.3  # steps; share of the steps
LOG_EVERY = 10  # steps
MATRIX_RATE, OTHER_RATE = 0.008, 2e-3
WIDTH, HEAD = 192, 64
LARGEST = 12_000_000  # bytes on disk, in bf16
STEPS: dict[Phase, int] = {"reading": 2400, "recall": 3600, "mixed": 3200}

# What decides the weights: a run goes on with these as they were.
_FIXED = (
    "edition", "start", "reading_steps", "last_steps", "tokens", "seed", "final_rate", "dropout", "average", "width",
    "shares",
)  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int, width: int = WIDTH) -> LlamaForCausalLM:
    """A fresh reader: plain Llama architecture, copying wired up; 3.1 M parameters at the usual width.

    Raises:
        TrainingError: the width isn't a multiple of 64, of at least two heads, or makes more than 12 MB on disk.
    """
    if width % HEAD or width < 2 * HEAD:
        raise TrainingError(f"--width {width}: it must be a multiple of {HEAD}, {2 * HEAD} at least.")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=HEAD * round(width * 8 / 3 / HEAD),
        num_hidden_layers=6,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    size = 2 * sum(weight.numel() for weight in model.parameters())
    if size > LARGEST:
        raise TrainingError(f"--width {width} makes {size / 1e6:.1f} MB of weights; {LARGEST / 1e6:.0f} are allowed.")
    wire_induction(model, seed)
    return model


def make_tokenizer(folder: Path, edition: int = 1) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, trained first if it isn't there yet."""
    if not (folder / "tokenizer.json").exists():
        world = World(1904, training_kinds(edition), 3600, "reader")
        examiner = Examiner(world.events, 0)
        rng = random.Random(0)
        texts = [realise(event, 0, stream="reader") for event in world.events]
        for event in world.events[:1500]:
            question = examiner.ask(event, rng.choice(sorted(event.kind.questions)), "")
            texts.append(f"Question: {question.question}\nAnswer: {question.choices[question.answer]}\n\n")
            texts.append(f"{question.question}\nA. {question.choices[0]}\nB. {question.choices[1]}\nAnswer: A\n\n")
        train_tokenizer(texts).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def learning_rate(step: int, steps: int, final: float = 0.0) -> float:
    """Share of the peak rate at a step: linear warm-up, flat, then linear to ``final`` over the last part."""
    left = min(1.0, (steps - step) / (DECAY * steps))
    return min((step + 1) / WARM_UP, final + (1 - final) * left)


def weighted_loss(model: LlamaForCausalLM, rows: list[Row], pad: int) -> torch.Tensor:
    """Mean negative log-likelihood of a micro-batch under its tokens' weights."""
    ids, weights = collate(rows, pad)
    ids, weights = ids.to(model.device), weights.to(model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
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


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], average: Average, step: int
) -> None:
    """Write all state, atomically."""
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "average": average.state(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], average: Average
) -> int:
    """Read all state; returns how many steps were made, 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")  # what loads it moves it
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    average.load(state["average"], model.device)
    return int(state["step"])


@contextmanager
def dropout(model: LlamaForCausalLM, rate: float) -> Iterator[None]:
    """Within, what each layer's two branches add is dropped out at ``rate`` while the model trains; Llama has none."""

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, module.training)

    branches = [m for layer in model.model.layers for m in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    hooks = [branch.register_forward_hook(drop) for branch in branches] if rate else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Steps(Dataset[list[Batch]]):
    """Item n is the batches of step n; a function of its number, so that any process can make it."""

    def __init__(self, mixture: Mixture, phase: Phase, steps: int, tokens: int) -> None:
        self._mixture, self._phase, self._steps, self._tokens = mixture, phase, steps, tokens

    def __getitem__(self, step: int) -> list[Batch]:
        return self._mixture.step(self._phase, step, step / self._steps, self._tokens)


def _batches(mixture: Mixture, phase: Phase, first: int, steps: int, arguments: argparse.Namespace) -> Iterable[Any]:
    data = _Steps(mixture, phase, steps, arguments.tokens)
    if arguments.workers:
        data[first]  # makes the worlds here, once, for all processes that are forked
    return DataLoader(data, batch_size=None, sampler=range(first, steps), num_workers=arguments.workers)


def train(arguments: argparse.Namespace) -> None:
    """Run, or go on with, a training: the reading phase, then the edition's second one from its weights.

    Raises:
        TrainingError: the folder holds a run with other settings, or a setting can't be.
    """
    out: Path = arguments.out
    _settle(arguments)
    first, last = phases(arguments.edition)
    reader = arguments.start or out / "reading"
    if not arguments.start and not (reader / "config.json").exists():
        tokenizer = make_tokenizer(out, arguments.edition)
        run_phase(first, new_model(tokenizer, arguments.seed, arguments.width), tokenizer, reader, arguments)
    if not (out / "model" / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(reader)
        model = LlamaForCausalLM.from_pretrained(reader, dtype=torch.float32)
        run_phase(last, model, tokenizer, out / "model", arguments)
    if arguments.probe_after_training and not (out / "endurance.json").exists():
        model = LlamaForCausalLM.from_pretrained(out / "model", dtype=torch.float32).to(arguments.device)
        tokenizer = AutoTokenizer.from_pretrained(out / "model")
        found = endurance(model.eval(), tokenizer, arguments.edition)
        _log.info("%s", json.dumps(found))
        write_json(out / "endurance.json", found)


def _settle(arguments: argparse.Namespace) -> None:
    """Settles what has no value yet, and makes sure that an unfinished run goes on as it began."""
    phase = phases(arguments.edition)[1]
    arguments.last_steps = arguments.last_steps or STEPS[phase]
    try:
        Shares.parse(arguments.shares)
        Average(arguments.average, 1)
    except ValueError as problem:
        raise TrainingError(f"--shares or --average: {problem}.") from problem
    if not 0 <= arguments.dropout < 1 or not 0 <= arguments.final_rate <= 1:
        raise TrainingError("--dropout must be from 0 to under 1, --final-rate (a share of the peak) from 0 to 1.")
    if arguments.start and arguments.width != WIDTH:
        raise TrainingError("--width has no effect with --start, whose weights have a width already; leave it out.")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(arguments, name) for name in _FIXED}
    settings["start"] = str(arguments.start.resolve()) if arguments.start else None
    file = out / "settings.json"
    if file.exists():
        before = read_json(file)
        changed = [name for name in _FIXED if before.get(name) != settings[name]]
        if changed:
            raise TrainingError(
                f"{out} holds a run with other settings ({', '.join(f'{n}: {before.get(n)}' for n in changed)}). Go on "
                "with these, or name another --out."
            )
    write_json(file, settings)


def run_phase(
    phase: Phase,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    result: Path,
    arguments: argparse.Namespace,
) -> None:
    """Train ``model`` through one phase and save it, in bf16, in ``result``; an unfinished phase goes on."""
    steps = arguments.reading_steps if phase == "reading" else arguments.last_steps
    shares = Shares.parse(arguments.shares)
    mixture = Mixture(tokenizer, arguments.seed, edition=arguments.edition, shares=shares)
    model.to(arguments.device)
    optimizers = make_optimizers(model)
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    # What is averaged is the result, not what another phase starts from.
    average = Average(arguments.average if phase != "reading" else "none", steps)
    checkpoint = arguments.out / f"{phase}.pt"
    first = load_checkpoint(checkpoint, model, optimizers, average)
    journal = _Journal(arguments.out / "log.jsonl", phase, first)
    final = arguments.final_rate if phase != "reading" else 0.0
    model.train()
    saved = time.monotonic()
    with dropout(model, arguments.dropout):
        for step, batches in enumerate(_batches(mixture, phase, first, steps, arguments), first):
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate(step, steps, final)
            torch.manual_seed((arguments.seed << 32) + step)  # of dropout: a resumed run drops the same
            for batch in batches:
                loss = weighted_loss(model, batch.rows, tokenizer.pad_token_id)
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(
                        f"the loss isn't finite at step {step}; the last checkpoint is {checkpoint}"
                    )
                (loss / len(batches)).backward()
                journal.note(batch, loss.item())
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.add(model, step)
            last = step + 1 == steps
            probes = last or (step + 1) % arguments.probe_every == 0
            if probes or (step + 1) % LOG_EVERY == 0:
                with average.applied(model):
                    journal.write(step, norm, probe(model, mixture) if probes else None)
            if last or time.monotonic() - saved >= 60 * arguments.save_minutes:
                save_checkpoint(checkpoint, model, optimizers, average, step + 1)
                saved = time.monotonic()
    with average.applied(model):
        model.config.newswire_edition = arguments.edition
        with publish_folder(result) as building:
            tokenizer.save_pretrained(building)
            model.cpu().to(torch.bfloat16).save_pretrained(building)


class _Journal:
    """The log of one phase: losses by kind of batch since the last entry, speed, and the probe where there was one.

    Args:
        file: JSON lines; entries that a killed run wrote after its last checkpoint are taken out.
        phase: which.
        first: the step that it begins with.
    """

    def __init__(self, file: Path, phase: Phase, first: int) -> None:
        self._file, self._phase = file, phase
        self._seen, self._began = 0, time.time()
        self._losses: dict[str, list[float]] = {}
        if file.exists():
            lines = file.read_text().splitlines(keepends=True)
            entries = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
            file.write_text("".join(line for line, e in entries if e["phase"] != phase or e["step"] < first))

    def note(self, batch: Batch, loss: float) -> None:
        """Take in the loss of one micro-batch."""
        self._losses.setdefault(batch.name, []).append(loss)
        self._seen += sum(len(row.ids) for row in batch.rows)

    def write(self, step: int, norm: float, probed: dict[str, float] | None) -> None:
        """Add an entry."""
        entry: dict[str, Any] = {
            "phase": self._phase,
            "step": step,
            "losses": {name: round(sum(values) / len(values), 4) for name, values in self._losses.items()},
            "norm": round(norm, 3),
            "tokens": self._seen,
            "tokens_per_second": round(self._seen / (time.time() - self._began)),
        }
        if probed is not None:
            entry["probe"] = {name: round(value, 3) for name, value in probed.items()}
        self._losses = {}
        with self._file.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        _log.info("%s", json.dumps(entry))


def parser() -> argparse.ArgumentParser:
    """The command line of the training."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of the run; an unfinished run there goes on")
    add("--edition", type=int, choices=EDITIONS, default=1, help="of the newswire (default: 1)")
    add("--start", type=Path, help="a reader to start the second phase from, without a reading phase")
    add("--device", default="cpu", help="where: cpu (default), cuda")
    add("--workers", type=int, default=0, help="processes that make batches beside the training (default: 0)")
    add("--reading-steps", type=int, default=STEPS["reading"])
    add("--recall-steps", "--mixed-steps", dest="last_steps", type=int, help="of the second phase (3,600; mixed 3,200)")
    add("--tokens", type=int, default=2048, help="tokens of a micro-batch")
    add("--shares", default="", help="micro-batches a step of the mixed phase, as plain_news=2,letters=0.5")
    add("--final-rate", type=float, default=0.0, help="learning rate of the last step, as a share of the peak")
    add("--dropout", type=float, default=0.0, help="of what each layer adds; 0 (default) for none")
    add("--average", default="none", help="of the weights that are saved: ema:0.998, mean:0.1 (of the steps), none")
    add("--width", type=int, default=WIDTH, help="of a reader from scratch; 12 MB of weights at most (256)")
    add("--seed", type=int, default=0)
    add("--probe-every", type=int, default=400, help="steps")
    add("--probe-after-training", action="store_true", help="at the end, how reading outlives a short FT-par")
    add("--save-minutes", type=float, default=5.0, help="between checkpoints")
    return made


def main() -> None:
    """Command line of the training."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(parser().parse_args())
    except KinjectError as problem:
        raise SystemExit(str(problem)) from problem


if __name__ == "__main__":
    main()
