"""`kinject train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_kinject.cli.shell import app, say


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="the YAML file of a recipe or sequence, or a bundled recipe's name")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder of the result; default: runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the unfinished run in that folder")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print counts, steps, time and memory; train nothing")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the recipe's, repeatable")
    ] = None,
) -> None:
    """Continue a model's pretraining on a corpus, or adapt a retriever; killed runs go on with --resume."""
    from kinject_trainer.card import scored_with
    from kinject_trainer.command import train as run
    from kinject_trainer.retriever import is_retriever, train_retriever
    from kinject_trainer.sequence import is_sequence, train_sequence

    if is_sequence(recipe):
        made = train_sequence(recipe, out=out, resume=resume, dry_run=dry_run, overrides=overrides or (), say=say)
        if made.folder is not None:
            print(f"{made.folder} is finished: README.md and sequence.json there say how each month is known.")
        print("\n".join(made.lines))
        return
    if is_retriever(recipe):
        found = train_retriever(recipe, out=out, resume=resume, dry_run=dry_run, overrides=overrides or (), say=say)
        print("\n".join(found.lines))
        if found.folder is not None:
            print(f"{found.folder} is finished. Score with it:")
            print(f"  lm_eval --model rag-hf --model_args retriever={found.folder},k=3 --tasks current_events_cloze")
        return
    result = run(recipe, out=out, resume=resume, dry_run=dry_run, overrides=overrides or (), say=say)
    if result.estimate is not None:
        print("\n".join(result.estimate.lines()))
        return
    base = result.record["base"]["name"]
    loads = "" if base == "reader" else f"pretrained={base if '/' in base else 'BASE'},"
    how = "pretrained" if result.record["recipe"]["method"] == "full" else f"{loads}peft"
    print(f"{result.folder} {'was finished before' if result.already else 'is finished'}. Score it:")
    retrieved = scored_with(result.record["recipe"])
    print(f"  lm_eval --model rag-hf --model_args {how}={result.folder},{retrieved}")
    if "=BASE," in how:
        print("BASE is the folder of the base model.")
