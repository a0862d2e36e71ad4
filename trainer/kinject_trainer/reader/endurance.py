"""What is left of a reader after it is trained on: a short FT-par on news it never read, and reading before and after.

What it is for: comparing mixtures and settings of `pretrain` by what they are to achieve, that continued pretraining
doesn't destroy reading. What it does not do: it uses no bundled question. Its world is one of its own in the reader's
realm, so that what is chosen by these figures is chosen on validation. It says nothing of held-out kinds or phrasings.

    python -m kinject_trainer.reader.endurance runs/reader/model --out runs/reader/endurance.json

The training is the recipe ``reader-ft-par`` in small: all weights, AdamW at 1e-3 with a linear fall, blocks of 256, 16
an update, the originals and `WORDINGS` - 1 paraphrases of every chunk, `EPOCHS` times: about 500 k tokens, a tenth of
the recipe's. Reading is over the right chunk and two others of its kind, as a retriever brings them; an answer is right
as in lm_eval's ``acc``, by the highest log-likelihood of four options.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from kinject_trainer.data import cut, encoder
from kinject_trainer.forgetting import Question, old_world, recall
from kinject_trainer.reader.mixture import BLOCK, cloze_prompt, edition_of, training_kinds
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.realise import realise
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.provenance import write_json

SEED = 1905
EVENTS, WORDINGS, EPOCHS = 192, 4, 3
QUESTIONS = 120
RATE, WARM_UP, WEIGHT_DECAY, GLOBAL_BATCH = 1e-3, 0.05, 0.01, 16
_MICRO = 4  # blocks a forward pass


def endurance(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    edition: int,
    *,
    events: int = EVENTS,
    questions: int = QUESTIONS,
) -> dict[str, float]:
    """Measure reading, recall and closed book, train a copy of the model on news, and measure again.

    Args:
        model: stays as it is.
        tokenizer: the model's.
        edition: of the newswire.
        events: of the small world; each is a chunk that is trained on.
        questions: of each measurement.

    Returns:
        "reading, before" and so on -> share of answers right, 0 to 1; and "updates", how many there were.
    """
    world = World(SEED, training_kinds(edition), events, "reader")
    asked = {
        "reading": _questions(world, tokenizer, questions, k=3),
        "closed book": _questions(world, tokenizer, questions, k=0),
        "old world": old_world(tokenizer, edition)[:questions],
    }
    device = model.device
    found: dict[str, float] = {}
    for name, of in asked.items():
        found[f"{name}, before"] = recall(model, of, device, batch=4)
    trained = copy.deepcopy(model)
    found["updates"] = _train(trained, _blocks(world, tokenizer))
    for name, of in asked.items():
        found[f"{name}, after"] = recall(trained, of, device, batch=4)
    return {name: round(value, 4) for name, value in found.items()}


def _questions(world: World, tokenizer: PreTrainedTokenizerBase, count: int, k: int) -> list[Question]:
    """Questions on chunks as they are trained on, alone or behind the right chunk and others of its kind."""
    rng = random.Random(f"endurance:{SEED}:questions")  # the same questions for every k
    examiner = Examiner(world.events, SEED)
    found: list[Question] = []
    for _ in range(count):
        event = rng.choice(world.events)
        rivals = [e for e in world.events if e.kind.kind == event.kind.kind and e is not event]
        shown = [event, *rng.sample(rivals, 2)]
        rng.shuffle(shown)
        context = "".join(_chunk(e, 0) + "\n\n" for e in (shown if k else ()))
        asked = examiner.ask(event, rng.choice(sorted(event.kind.questions)), "")
        prompt = tokenizer.encode(context + cloze_prompt(asked), add_special_tokens=False)
        options = tuple(tuple(tokenizer.encode(f" {c}", add_special_tokens=False)) for c in asked.choices)
        found.append(Question((tokenizer.bos_token_id, *prompt), options, asked.answer))
    return found


def _chunk(event: Event, number: int) -> str:
    return realise(event, number, stream="endurance")


def _blocks(world: World, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Epoch after epoch in another order, in blocks of 256; a shorter one at the end is left out."""
    encode = encoder(tokenizer)
    documents = [encode(_chunk(event, number)) for event in world.events for number in range(WORDINGS)]
    rng = random.Random(f"endurance:{SEED}:order")
    stream = [documents[i] for _ in range(EPOCHS) for i in rng.sample(range(len(documents)), len(documents))]
    return [block for block in cut(stream, BLOCK) if len(block) == BLOCK]


def _train(model: LlamaForCausalLM, blocks: Sequence[Sequence[int]]) -> int:
    """Train in place; returns the number of updates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    updates = -(-len(blocks) // GLOBAL_BATCH)
    warm_up = max(1, round(WARM_UP * updates))
    model.train()
    for update in range(updates):
        rate = min((update + 1) / warm_up, (updates - update) / max(1, updates - warm_up), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * rate
        batch = blocks[update * GLOBAL_BATCH : (update + 1) * GLOBAL_BATCH]
        for start in range(0, len(batch), _MICRO):
            ids = torch.tensor(batch[start : start + _MICRO], device=model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss * len(ids) / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return updates


def main() -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", type=Path, help="a reader's folder")
    parser.add_argument(
        "--edition", type=int, help="of the newswire (default: the one that the reader was trained for)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures there too, as JSON")
    given = parser.parse_args()
    model = LlamaForCausalLM.from_pretrained(given.reader, dtype=torch.float32).to(given.device)
    tokenizer = AutoTokenizer.from_pretrained(given.reader)
    found = endurance(model.eval(), tokenizer, given.edition or edition_of(given.reader))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if given.out:
        write_json(given.out, found)


if __name__ == "__main__":
    main()
