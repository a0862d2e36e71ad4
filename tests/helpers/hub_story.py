"""The whole story of a knowledge adapter, told to whatever ``HF_ENDPOINT`` says.

Push a base and a corpus → train on them → push the run → score it from a fresh cache with ``lm_eval`` → push the scores
→ open a pull request → submit results to a data set. It uses only what a user would, in a process of its own; `tell`
starts that process and a Hub for it. test_hub_story.py tells it of a tiny model, benchmarks/story.py of the reader.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hub_server import HubServer, Store
from kinject_trainer.command import train

from helpers.hub_fixture import TOKEN
from helpers.local_tasks import ROOT
from lm_eval_kinject.hub.adapters import add, verify
from lm_eval_kinject.hub.push import push_dataset, push_model, push_run
from lm_eval_kinject.hub.submit import submit_results, submit_scores


@dataclass(frozen=True)
class Story:
    """What is pushed, and how it is trained and scored; folders are absolute.

    Attributes:
        base: folder of a model; becomes ``me/reader``.
        corpus: folder of a data set with chunks and paraphrases; becomes ``me/corpus``.
        questions: folder of a data set; becomes ``me/questions``.
        tasks: for ``--include_path``; None: the tasks as they are.
        recipe: YAML, without model and corpus.
        retrieval: model_args, such as ``retriever=bm25,k=2``.
        scratch: folder for everything that comes of it.
    """

    base: str
    corpus: str
    questions: str
    tasks: str | None
    recipe: str
    retrieval: str
    scratch: str


@dataclass(frozen=True)
class Told:
    """What was seen (see `main`), all that was printed, and the Hub's content at the end."""

    seen: dict[str, Any]
    printed: str
    store: Store


def tell(story: Story, more: Mapping[str, str], timeout: float) -> Told:
    """Starts a Hub and a process that tells the story to it.

    Args:
        story: what to tell.
        more: further environment variables.
        timeout: seconds.

    Raises:
        RuntimeError: the story didn't come to its end; with what the process printed.
    """
    store = Store()
    store.add_user("me", TOKEN)
    store.add_user("other", "hf_" + "o" * 34)
    store.create("model", "other/reader-ft-par", "other", private=False)
    with HubServer(store) as hub:
        environment = {
            **os.environ,
            **hub.environment(Path(story.scratch) / "home", TOKEN),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer"), str(ROOT / "tests")]),
            "KINJECT_CACHE": str(Path(story.scratch) / "kinject"),
            **more,
        }
        command = [sys.executable, __file__, json.dumps(asdict(story))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    if done.returncode or not lines:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-6000:])
    return Told(json.loads(lines[0].removeprefix("SEEN ")), done.stdout + done.stderr, store)


# The process itself ---------------------------------------------------------------------------------------------------

PLAIN = """\
import importlib.util, sys
sys.path += {paths!r}  # what is installed, without the links to checkouts that would be followed at a usual start
assert not any(map(importlib.util.find_spec, ["lm_eval_kinject", "kinject_trainer"]))
import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {adapter!r})
loaded = {{name.replace(".default.", "."): tensor for name, tensor in model.named_parameters() if "lora" in name}}
file = load_peft_weights({adapter!r}, device="cpu")
assert set(file) == set(loaded), sorted(set(file) ^ set(loaded))
other = [name for name in file if not torch.equal(file[name], loaded[name].to(file[name].dtype))]
assert not other, other
assert any(tensor.any() for name, tensor in file.items() if "lora_B" in name), "B is zero, as in a fresh adapter"
print("LOADED", len(file))
"""
"""The modules of a LoRA are there, and zero, whatever the file holds: what counts is that its tensors are in them."""


def score(story: Story, out: Path, home: Path) -> None:
    """lm_eval from the command line, with a cache of its own."""
    arguments = f"pretrained=me/reader,peft=me/reader-ft-par,corpus=me/corpus,{story.retrieval}"
    tasks = ["--include_path", story.tasks] if story.tasks else []
    command = [
        sys.executable, "-m", "lm_eval_kinject", "--model", "rag-hf", "--model_args", arguments, *tasks,
        "--tasks", "current_events_cloze", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    run(command, {"HF_HOME": str(home)})


def loads_with_plain_peft(scratch: Path, base: str = "me/reader", adapter: str = "me/reader-ft-par") -> int:
    """How many LoRA tensors of an adapter arrive in the model where our packages aren't importable.

    Run outside the checkout.

    Raises:
        RuntimeError: one doesn't arrive, or they leave the model as it is.
    """
    program = PLAIN.format(paths=site.getsitepackages(), base=base, adapter=adapter)
    command = [sys.executable, "-S", "-c", program]
    printed = run(command, {"HF_HOME": str(scratch / "fresh3"), "PYTHONPATH": ""}, cwd=scratch)
    return int(printed.split("LOADED")[1].strip())


def run(command: list[str], more: dict[str, str], cwd: Path | None = None) -> str:
    """A process that must end well; returns what it printed."""
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def main() -> None:
    """Tells the story and prints what came of it, with the seconds of each chapter."""
    story = Story(**json.loads(sys.argv[1]))
    scratch = Path(story.scratch)
    said: list[str] = []
    seen: dict[str, Any] = {"seconds": {}}

    @contextmanager
    def chapter(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seen["seconds"][name] = round(time.perf_counter() - start, 1)

    with chapter("push base and data"):
        push_model(Path(story.base), "me/reader", say=said.append)
        push_dataset(Path(story.corpus), "me/corpus", say=said.append)
        push_dataset(Path(story.questions), "me/questions", say=said.append)
    with chapter("train"):
        (scratch / "reader-ft-par.yaml").write_text(f"model: me/reader\ncorpus: me/corpus\n{story.recipe}")
        made = train(scratch / "reader-ft-par.yaml", out=scratch / "run", say=said.append)
        assert made.folder is not None
    with chapter("push run"):
        seen["pushed"] = push_run(made.folder, "me/reader-ft-par", say=said.append).sent
        seen["pushed again"] = push_run(made.folder, "me/reader-ft-par").sent
    with chapter("score"):
        score(story, scratch / "out", scratch / "fresh")
    with chapter("push scores"):
        submit_scores([scratch / "out"], "me/reader-ft-par", say=said.append)
    with chapter("pull request"):
        request = push_run(made.folder, "other/reader-ft-par", pull_request=True, say=said.append)
        seen["pull request"] = request.pull_request
    with chapter("submit"):
        submit_results([scratch / "out"], "me/results", say=said.append)
        call = next(line for line in said if line.startswith("datasets.load_dataset"))
        program = f"import datasets; print('ROW', {call}[0]['results']['current_events_cloze']['acc,none'])"
        printed = run([sys.executable, "-c", program], {"HF_HOME": str(scratch / "fresh2")})
        seen["row"] = printed.split("ROW")[1].strip()
    with chapter("plain peft"):
        seen["plain"] = loads_with_plain_peft(scratch)
    with chapter("register"):
        add("me/reader-ft-par", say=said.append)
        seen["verified"] = verify("reader-ft-par", say=said.append).repo
    seen["said"] = said
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
