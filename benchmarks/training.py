"""The trainer against TRL's SFTTrainer: the same blocks, the same model, the same machine, in turn.

For: tokens a second and peak memory of both, at a vocabulary of 2,000 and of 32,000, and on a GPU the share of its peak
that is used. Not for: losses, which `tests/invariant/test_train_reference.py` compares with a loop of its own; both
losses are printed all the same, and a run in which they differ counts for nothing.

The one idea: each contender runs in a process of its own, whose peak memory is then its own; they take turns, several
rounds, and what is reported is the median of each and of the ratio within a round. TRL is given the very blocks
(``packing_strategy="wrapped"`` over documents that are already whole blocks makes the same ones), batch, optimizer,
precision and number of updates; checkpoints and evaluation are off on both sides. Ours is put together by what
``kinject train`` calls, and so pays for what it always does: a line of the log, the progress bar and a look at loss and
gradients at each update. TRL logs nothing.

    python benchmarks/training.py                                    # needs `pip install trl`; about 10 minutes
    python benchmarks/training.py --small                            # a tiny model: does it run?
    python benchmarks/training.py --device cuda --model 1b --precision bf16 --micro 16
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RESULTS = Path(__file__).parent / "results"
_OF_A_CASE = ("model", "batch", "micro", "updates", "precision", "device", "threads")
BLOCK = 256
VOCABULARIES = {"2k": 2048, "32k": 32_000}
MODELS = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16},
}
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12, "A10": 125e12}
"""Dense bf16 peaks by a part of the GPU's name, from the makers' data sheets."""


# One contender, in a process of its own -------------------------------------------------------------------------------


def make_base(folder: Path, model: str, vocabulary: int) -> None:
    """A random Llama with a tokenizer of so many entries (it is asked for nothing but its special tokens)."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    entries = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"t{i}": i for i in range(3, vocabulary)}
    raw = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True, **MODELS[model])
    LlamaForCausalLM(config).save_pretrained(folder)


def blocks_of(case: Any) -> Any:
    """Random blocks: a training's time depends on shapes and not on meaning."""
    import numpy as np

    rng = np.random.default_rng(0)
    count = case.updates * case.batch
    return rng.integers(3, case.vocabulary, size=(count, BLOCK), dtype=np.int64)


def arguments_of(case: Any, place: str) -> dict[str, Any]:
    """What TRL is given: the same as our recipe comes to (`ours`)."""
    return {
        "output_dir": place,
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.batch // case.micro,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "bf16": case.precision == "bf16",
        "use_cpu": case.device == "cpu",
        "seed": 0,
    }


def ours(case: Any, folder: Path, place: str) -> Any:
    """Our trainer over the blocks, put together as ``kinject train`` does from the stream on."""
    import numpy as np
    from kinject_trainer.base import Base
    from kinject_trainer.data import Store, Stream
    from kinject_trainer.log import Log
    from kinject_trainer.recipe import Recipe
    from kinject_trainer.train import assemble, set_up
    from kinject_trainer.trainer import Materials
    from transformers import AutoTokenizer

    blocks = blocks_of(case)
    recipe = Recipe(
        model="m",
        corpus="c",
        variant="ft-reg",
        method="full",
        learning_rate=1e-4,
        schedule="constant",
        warm_up=0,
        precision=case.precision,
        global_batch=case.batch,
        micro_batch=case.micro,
        checkpoint_every="never",
        validate_every="never",
        forgetting=False,
    )
    base = Base("m", folder, "")
    store = Store(
        blocks.reshape(-1).astype(np.uint32),
        np.arange(len(blocks) + 1) * BLOCK,
        np.arange(len(blocks), dtype=np.int64),
    )
    stream = Stream(store, 0, BLOCK, blocks.size)
    materials = Materials(recipe, base, AutoTokenizer.from_pretrained(folder), stream, [], None, {})
    plan, arguments = set_up(materials, 1e-4, Path(place))
    trainer, _, _ = assemble(materials, plan, arguments, Log(Path(place) / "log.jsonl", 0), {}, time.monotonic())
    return trainer


def theirs(case: Any, folder: Path, place: str) -> Any:
    """TRL's SFTTrainer over the same blocks."""
    import numpy as np
    import torch
    from datasets import Dataset
    from kinject_trainer.data import epoch_order
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    blocks = blocks_of(case)
    rows = Dataset.from_dict({"input_ids": blocks[epoch_order(np.arange(len(blocks)), 0, 0)].tolist()})
    arguments = SFTConfig(
        **arguments_of(case, place),
        max_length=BLOCK,
        packing=True,
        packing_strategy="wrapped",
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(folder))


def run_one(case: Any) -> dict[str, Any]:
    """Trains once; returns figures.

    ``tokens_per_second`` is over all updates but the first, in which memory is claimed and kernels are chosen; the same
    over this process's processor time is fairer where other processes have the machine, too.
    ``memory_mb`` is the peak above what the process held before the first update (on a GPU: the allocator's peak).
    """
    import torch
    from transformers import TrainerCallback

    if case.threads:
        torch.set_num_threads(case.threads)
    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "base"
        make_base(folder, case.model, case.vocabulary)
        trainer = {"ours": ours, "trl": theirs}[case.contender](case, folder, place)
        trainer.add_callback(Clock())
        before = _held(torch)
        made = trainer.train()
        tokens = (case.updates - 1) * case.batch * BLOCK
        seconds, processor_seconds = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
        return {
            "tokens_per_second": tokens / seconds,
            "tokens_per_processor_second": tokens / processor_seconds,
            "memory_mb": (_peak(torch) - before) / 1e6,
            "loss": made.training_loss,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }


def _held(torch: Any) -> float:
    """Bytes in use now: of the GPU, or of this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _peak(torch: Any) -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Side by side ---------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, vocabulary: str) -> dict[str, Any]:
    """Runs both in turn; returns medians and ratios."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        order = ["ours", "trl"] if number % 2 == 0 else ["trl", "ours"]
        rounds.append({contender: _in_process(options, vocabulary, contender) for contender in order})
        speeds = {name: round(found["tokens_per_second"]) for name, found in rounds[-1].items()}
        print(f"  {vocabulary} round {number + 1}: tokens/s {speeds}", file=sys.stderr)
    for one in rounds:
        if abs(one["ours"]["loss"] - one["trl"]["loss"]) > 2e-3:
            raise SystemExit(f"the losses differ, so the comparison is void: {one}")
    result: dict[str, Any] = {"vocabulary": vocabulary, "rounds": rounds}
    for key in ("tokens_per_second", "tokens_per_processor_second", "memory_mb"):
        for name in ("ours", "trl"):
            result[f"{key}_{name}"] = statistics.median(one[name][key] for one in rounds)
        result[f"{key}_ratio"] = statistics.median(one["ours"][key] / one["trl"][key] for one in rounds)
    device, parameters = rounds[0]["ours"]["device"], rounds[0]["ours"]["parameters"]
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    if peak is not None and options.precision == "bf16":  # the peaks are those of bf16
        result["utilisation"] = 6 * parameters * result["tokens_per_second_ours"] / peak
    return result


def _in_process(options: argparse.Namespace, vocabulary: str, contender: str) -> dict[str, Any]:
    case = {
        "contender": contender,
        "vocabulary": VOCABULARIES[vocabulary],
        **{
            key: getattr(options, key)
            for key in ("model", "batch", "micro", "updates", "precision", "device", "threads")
        },
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(case)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: list[dict[str, Any]]) -> str:
    head = ("vocabulary", "tokens/s ours", "TRL", "ratio", "of processor time", "MB ours", "TRL", "ratio")
    rows = [
        (
            r["vocabulary"],
            f"{r['tokens_per_second_ours']:,.0f}",
            f"{r['tokens_per_second_trl']:,.0f}",
            f"{r['tokens_per_second_ratio']:.2f}×",
            f"{r['tokens_per_processor_second_ratio']:.2f}×",
            f"{r['memory_mb_ours']:,.0f}",
            f"{r['memory_mb_trl']:,.0f}",
            f"{r['memory_mb_ratio']:.2f}×",
        )
        for r in results
    ]
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="a tiny model, two updates, one round")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--vocabularies", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=8, help="blocks an update")
    parser.add_argument("--micro", type=int, default=8, help="blocks a forward pass")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as it likes")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(SimpleNamespace(**json.loads(options.one)))))
        return
    if options.small:
        options.model, options.updates, options.rounds = "tiny", 2, 1
    results = [compare(options, vocabulary) for vocabulary in options.vocabularies]
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "trl")}
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": results[0]["rounds"][0]["ours"]["device"],
        "processor": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "packages": packages,
        "settings": {k: v for k, v in vars(options).items() if k not in ("one", "save", "small")},
    }
    print(json.dumps(about))
    print(table(results))
    for result in results:
        if "utilisation" in result:
            print(f"model FLOPs utilisation, vocabulary {result['vocabulary']}: {result['utilisation']:.1%}")
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        name = f"training-{about['date']}-{options.device}-{options.precision}.json"
        (RESULTS / name).write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
