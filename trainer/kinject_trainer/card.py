"""The model card of a result: what was trained on what, how it went, what was forgotten, how to use it.

What it does not do: it praises nothing; every figure in it is from `kinject.json`, and what wasn't measured is said to
be so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kinject_trainer.recipe import OLDER_NEWS, to_run_again

__all__ = ["scored_with", "write_card"]

_LOFTQ = """
**This adapter doesn't belong to the base as published.** LoftQ replaced the base's weights by weights rounded to 4 bits
before the training, and the adapter makes up for the difference; on other weights it gives other answers. PEFT rounds
them anew when it loads the adapter (`init_lora_weights` in `adapter_config.json`), for which it needs bitsandbytes,
scipy and a GPU; this project's tests don't run that.
"""


_DISTILLED = (
    "Training losses are Kullback-Leibler divergences from the teacher, a token of the lessons' answers; the last "
    "epoch's is the mean over its updates. Validation losses are of the next token.\n"
)

_VALIDATED = "Losses are nats a token. The validation texts are further wordings of chunks that were trained on.\n"

_ASKED = "Losses are nats a token of the targets; the last epoch's is the mean over its updates.\n"

_REPLAYED_RECALL = "The recall asks for facts of the older news that was replayed: it was read again, not only kept.\n"


def write_card(record: Mapping[str, Any]) -> str:
    """The card in Markdown with its front matter, from a run's record (`kinject.json`)."""
    recipe, base = record["recipe"], record["base"]
    adapter = recipe["method"] != "full"
    matter: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lm-eval-kinject", "knowledge-injection", recipe["variant"], recipe["method"]],
    }
    if "/" in base["name"]:
        matter["base_model"] = base["name"]
    front = yaml.safe_dump(matter, sort_keys=True, allow_unicode=True)
    parts = [f"---\n{front}---\n", f"# {recipe['name']}\n", _what(record), _figures(record), _forgetting(record)]
    if len(record["trials"]) > 1:
        parts.append(_trials(record))
    return "\n".join([*parts, _use(record, adapter), _reproduce(record)])


def _what(record: Mapping[str, Any]) -> str:
    recipe, base, corpus = record["recipe"], record["base"], record["corpus"]
    wordings = f"each chunk in its own words and {record['paraphrases']} paraphrases"
    texts = wordings if record["paraphrases"] else "each chunk in its own words only"
    how = "all weights" if recipe["method"] == "full" else f"a {recipe['method']} adapter of rank {recipe['rank']}"
    size = f"{record['outcome']['trainable_parameters']:,} trainable parameters"
    done = f"after continued pretraining on the corpus `{corpus['name']}`"
    if "cartridge" in record:
        how = _cartridge(record)
        done = f"with the corpus `{corpus['name']}` compressed into its cache"
    trained_on, aim = f"{record['data']['chunks']:,} chunks; {texts}", "how much of a text goes into a model's weights"
    if "questions" in record:
        done, trained_on = _asked(record)
        aim = "how well a model answers from retrieved text, noise in it"
    return (
        f"The model `{base['name']}` {done} ({trained_on}): {how}, {size}. It was made to measure {aim}, to compare "
        f"with {'plain ' if 'questions' in record else ''}retrieval. It was not made to be useful or safe in other "
        f"ways, and what it says about the corpus can be wrong.\n\n"
        f"Corpus fingerprint `{corpus['fingerprint'][:16]}`, licence: {corpus.get('licence') or 'not stated'}.\n"
        + _replay(record)
        + _held(record)
    )


def _cartridge(record: Mapping[str, Any]) -> str:
    """What is trained in the place of weights, and on what."""
    made, said = record["cartridge"], record["recipe"]["cartridge"] or {}
    how = f"a cartridge of {made['tokens']:,} tokens' keys and values, which started as those of {made['started_as']}"
    if said.get("frozen", 1):
        how += f" (the first {said.get('frozen', 1):,} as they started)"
    if "lessons" not in made:
        return f"{how}, trained on the next tokens of the chunks; the base's weights are as they were"
    return (
        f"{how}, distilled from the base with the chunk in its prompt, in {made['lessons']:,} lessons an epoch with "
        f"{made['answer_tokens']:,} tokens of answers, written by templates from the chunks' own words; the base's "
        f"weights are as they were"
    )


def _asked(record: Mapping[str, Any]) -> tuple[str, str]:
    """What was done, and what it was done with."""
    asked, said = record["questions"], record["recipe"]["questions"]
    how = f"{said['form']} robust fine-tuning (arXiv 2410.05983)"
    if said["form"] == "self-reasoning":
        how = "training for self-reasoning (arXiv 2407.19813)"
    done = (
        f"after {how} on questions with chunks of the corpus "
        f"`{record['corpus']['name']}` in front, as `{said['retriever']}` finds them, right and wrong"
    )
    target = {
        "implicit": "the answer alone",
        "explicit": "which chunks are relevant and why, and the answer",
        "self-reasoning": "relevance, evidence, and analysis with the answer, each part added after a third of the run",
    }[said["form"]]
    of = f"{asked['questions']:,} questions of `{asked['name']}`, fingerprint `{asked['fingerprint'][:16]}`"
    found = f"{asked['passages'] / asked['questions']:.1f} chunks in front of each"
    if asked["source_known"]:
        found += f", the source among them for {asked['source_in_prompt']:,} of {asked['source_known']:,}"
    written = "" if said["form"] == "implicit" else "; what is relevant and why is written by a template"
    return done, f"{of}; {found}; trained on {target}{written}; no question of a bundled test set is among them"


def _replay(record: Mapping[str, Any]) -> str:
    replay = record.get("replay")
    if replay is None:
        return ""
    said, corpus = record["recipe"]["replay"], replay["corpus"]
    falling = f", times {said['decay']:g} from epoch to epoch" if said["decay"] != 1 else ""
    return (
        f"\nOlder texts were replayed so that less is forgotten: {said['ratio']:g} documents of `{corpus['name']}` for "
        f"each document of an epoch{falling}, drawn anew each epoch and spread evenly over it; "
        f"{replay['tokens']:,} of the tokens trained on. Fingerprint `{corpus['fingerprint'][:16]}`, licence: "
        f"{corpus.get('licence') or 'not stated'}.\n"
    )


def _held(record: Mapping[str, Any]) -> str:
    held = record["recipe"].get("regulariser")
    if held is None:
        return ""
    constants = ", ".join(f"{key} {value:g}" for key, value in held.items() if key not in ("kind", "corpus"))
    said = f"\nThe weights were held near the base's by the regulariser `{held['kind']}` ({constants})."
    fisher = record.get("fisher")
    if fisher is not None:
        corpus = fisher["corpus"]
        said += (
            f" What holds which weight was measured on {fisher['examples']:,} texts of `{corpus['name']}`, fingerprint "
            f"`{corpus['fingerprint'][:16]}`."
        )
    return said + " Losses are without the penalty.\n"


def _figures(record: Mapping[str, Any]) -> str:
    outcome, data, replay = record["outcome"], record["data"], record.get("replay")
    epochs = outcome["tokens"] / data["epoch_tokens"] if replay is None else replay["epochs"]
    lessons = "lessons" in record.get("cartridge", {})
    asked = "questions" in record
    padded = " (with padding)" if lessons or asked else ""
    rows = [
        ("tokens an epoch" + (" (without replay)" if replay else padded), f"{data['epoch_tokens']:,}"),
        ("tokens trained on", f"{outcome['tokens']:,}"),
        ("epochs", f"{epochs:.2f}"),
        ("updates", f"{outcome['updates']:,}"),
        ("blocks an update", f"{record['recipe']['global_batch']} of {record['recipe']['block_size']} tokens"),
        ("learning rate", f"{outcome['learning_rate']:g}"),
        ("training loss, last epoch", _number(outcome["train_loss_last_epoch"])),
        ("validation loss, base", _number(outcome["validation_loss_before"])),
        ("validation loss, end", _number(outcome["validation_loss"])),
    ]
    picture = "\n![Loss over updates](loss.png)\n" if record["files"].get("picture") else ""
    return (
        "## Training\n\n"
        + _table(("", ""), rows)
        + (f"\n{_ASKED}" if asked else f"\n{_VALIDATED}")
        + ("Training losses are over what is replayed, too.\n" if replay else "")
        + (_DISTILLED if lessons else "")
        + picture
    )


def _forgetting(record: Mapping[str, Any]) -> str:
    before, after = record["outcome"]["before"], record["outcome"]["after"]
    if before is None or after is None:
        return "## Forgetting\n\nNot measured.\n"
    rows = [("perplexity of general text", _number(before["perplexity"]), _number(after["perplexity"]))]
    if after["recall"] is not None:
        rows.append(("recall of the old world (four options)", _share(before["recall"]), _share(after["recall"])))
    return (
        "## Forgetting\n\n"
        + _table(("", "before", "after"), rows)
        + f"\nGeneral text: {record['general_text']}; {_apart(record)}.\n"
        + (_REPLAYED_RECALL if _replays_the_old_world(record) and after["recall"] is not None else "")
    )


def _apart(record: Mapping[str, Any]) -> str:
    if "replay" not in record or _replays_the_old_world(record):
        return "none of it is trained on"
    return "none of it is of the corpus, and it was not compared with what was replayed"


def _replays_the_old_world(record: Mapping[str, Any]) -> bool:
    """Whether what the recall asks for was trained on again."""
    return "replay" in record and record["replay"]["corpus"]["name"] == OLDER_NEWS


def _trials(record: Mapping[str, Any]) -> str:
    rows = []
    for trial in record["trials"]:
        outcome = trial["outcome"]
        loss = trial["stopped"] if outcome is None else _number(outcome["validation_loss"])
        rows.append((f"{trial['learning_rate']:g}", loss))
    return "## Search\n\nThe lowest validation loss won; no test question was looked at.\n\n" + _table(
        ("learning rate", "validation loss"), rows
    )


def scored_with(recipe: Mapping[str, Any]) -> str:
    """What a result is to be scored with: the retrieval that it was trained with, or none, and a task."""
    asked = recipe.get("questions")
    if asked is None:
        return "k=0 --tasks current_events_cloze"
    retrieved = f"retriever={asked['retriever']},k={asked['k']}"
    if asked["form"] == "self-reasoning":
        return f"{retrieved},reasoning=self-reasoning --tasks current_events_gen"
    return f"{retrieved} --tasks current_events_cloze"


def _use(record: Mapping[str, Any], adapter: bool) -> str:
    base = record["base"]["name"]
    retrieved = scored_with(record["recipe"])
    where = "RUN is this folder" + (", BASE the folder of the base model" if "/" not in base else "")
    loads = base if "/" in base else "BASE"
    if adapter:
        pretrained = "" if base == "reader" else f"pretrained={loads},"
        return (
            f"## Use\n\n{where}.\n\n```\n"
            f"lm_eval --model rag-hf --model_args {pretrained}peft=RUN,{retrieved}\n"
            "```\n\n"
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{loads}"), "RUN")\n```\n'
            + (_LOFTQ if record["recipe"]["method"] == "loftq" else "")
        )
    return (
        "## Use\n\nRUN is this folder.\n\n```\n"
        f"lm_eval --model rag-hf --model_args pretrained=RUN,{retrieved}\n```\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("RUN")\n```\n'
    )


def _reproduce(record: Mapping[str, Any]) -> str:
    recipe = yaml.safe_dump(to_run_again(record["recipe"]), sort_keys=False, allow_unicode=True)
    packages = record["environment"]["packages"]
    versions = ", ".join(f"{n} {packages[n]}" for n in ("torch", "transformers", "peft", "accelerate") if packages[n])
    said = f"Made with {versions}. `kinject.json` has fingerprints and every figure."
    return f"## Recipe\n\n{said}\n\n```yaml\n{recipe}```\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
