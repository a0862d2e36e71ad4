"""Shared-prefix scoring against lm_eval's own ``hf``: the same requests, the same process, in turn.

For: the figures in `benchmarks/results/`, and for finding out on your own machine whether sharing pays. Not for:
correctness at large, which `tests/invariant/test_scoring_exact.py` pins down on many architectures; the largest
difference is printed here all the same.

The one idea: prompts are token lists of the shapes that retrieval makes (chunks of 256 tokens in front of a question,
options behind it), drawn at random, and so is the model, Llama-shaped unless told otherwise, about 110 million
parameters with the smaller vocabulary. Time depends on shapes, not on meaning.

    python benchmarks/scoring.py --list
    python benchmarks/scoring.py                          # every case, an hour and a half on two CPU cores
    python benchmarks/scoring.py --cases k3-cloze-32k --questions 4
    python benchmarks/scoring.py --small                  # a tiny model, in a minute: does it run?
    python benchmarks/scoring.py --device cuda --dtype bfloat16 --model 1b
    python benchmarks/scoring.py --model hybrid --cases k3-cloze-32k --questions 6     # by forking the model's cache
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import logging
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lm_eval_kinject.scoring import ScoringStats, SharedPrefixScorer

RESULTS = Path(__file__).parent / "results"
CHUNK_TOKENS = 256
_PART = 8  # the better batch size of stock is looked for on this part of the questions, where they are many
_CLEARLY = 1.1  # times the fastest: a batch size slower than that on the part isn't run on all questions
BOS = 1

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        chunks: the values of K scored in one call; chunk lists are nested, as a retriever returns them.
        letters: options are one letter each behind a question that spells them out; otherwise their texts.
        shots: worked examples before the chunks, the same for all questions.
        vocabulary: size of the model's vocabulary.
        questions: how many, unless ``--questions`` says otherwise.
        target: the ratio that the project promises on two CPU cores, or None where it promises "not slower".
    """

    chunks: tuple[int, ...]
    letters: bool
    shots: int
    vocabulary: int
    questions: int
    target: float | None = None


SWEEP = (0, 1, 2, 3, 4, 5)
CASES = {
    "k3-cloze-32k": Case((3,), False, 0, 32_000, 24, 5.0),
    "k3-cloze-128k": Case((3,), False, 0, 128_000, 24, 9.0),
    "sweep-cloze-32k": Case(SWEEP, False, 0, 32_000, 16, 10.0),
    "sweep-cloze-128k": Case(SWEEP, False, 0, 128_000, 20, 20.0),
    "sweep-letters-32k": Case(SWEEP, True, 0, 32_000, 16, 3.0),
    "k3-5shot-cloze-32k": Case((3,), False, 5, 32_000, 16, 4.8),
    "k3-letters-32k": Case((3,), True, 0, 32_000, 24),
    "k3-letters-128k": Case((3,), True, 0, 128_000, 24),
    "k3-5shot-letters-32k": Case((3,), True, 5, 32_000, 16),
    "k3-5shot-cloze-128k": Case((3,), False, 5, 128_000, 8),
    "sweep-letters-128k": Case(SWEEP, True, 0, 128_000, 8),
    "sweep-5shot-cloze-32k": Case(SWEEP, False, 5, 32_000, 4),
    "k0-cloze-32k": Case((0,), False, 0, 32_000, 60),
    "k0-letters-32k": Case((0,), True, 0, 32_000, 60),
    "k0-5shot-letters-32k": Case((0,), True, 5, 32_000, 24),
    "one-k0-cloze-32k": Case((0,), False, 0, 32_000, 1),
    "one-k0-letters-32k": Case((0,), True, 0, 32_000, 1),
    "one-k3-cloze-32k": Case((3,), False, 0, 32_000, 1),
    "one-k3-letters-32k": Case((3,), True, 0, 32_000, 1),
    "one-sweep-letters-32k": Case(SWEEP, True, 0, 32_000, 1),
    "one-k3-5shot-letters-32k": Case((3,), True, 5, 32_000, 1),
    "two-k3-letters-32k": Case((3,), True, 0, 32_000, 2),
    "two-k3-cloze-32k": Case((3,), False, 0, 32_000, 2),
    "one-k0-cloze-128k": Case((0,), False, 0, 128_000, 1),
    "one-k3-letters-128k": Case((3,), True, 0, 128_000, 1),
}


@dataclass
class Run:
    """One way of scoring one case.

    Attributes:
        seconds: wall clock; see `run_case` for which of several.
        peak_mib: peak memory above what the weights take, in MiB; None where it can't be read.
        each: the seconds of every run, in order, where there were several.
    """

    seconds: float
    peak_mib: float | None
    each: tuple[float, ...] = ()


@dataclass
class Row:
    """The result of one case: stock at its better batch size, ours, and how they compare.

    Attributes:
        tried: stock at each batch size on a part of the questions, which left out those that were clearly slower; else
            empty, and stock was run on all questions at each.
        deepest: ours with the largest K alone, where several are scored in one pass.
    """

    case: str
    questions: int
    requests: int
    stock: dict[str, Run]
    tried: dict[str, Run]
    ours: Run
    ratio: float
    target: float | None
    forwarded_over_distinct: float | None
    memory_over_stock: float | None
    largest_difference: float
    same_greedy: bool
    stats: ScoringStats = field(repr=False)
    deepest: Run | None = None


def make_requests(case: Case, n_questions: int, vocabulary: int, seed: int = 0) -> list[Request]:
    """Requests of `case` as lm_eval would pass them: ``((text, text), context ids, option ids)``."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(rng.randint(low, high))]

    def question() -> list[int]:
        return words(24, 40) + (words(40, 56) if case.letters else [])  # with letters, the options' texts are in it

    header = [BOS]
    for _ in range(case.shots):
        header += question() + (words(1, 1) if case.letters else words(4, 12)) + words(2, 2)
    letters = [words(1, 1) for _ in range(4)]
    requests: list[Request] = []
    for number in range(n_questions):
        chunks = [words(CHUNK_TOKENS, CHUNK_TOKENS) for _ in range(max(case.chunks))]
        asked = question()
        options = letters if case.letters else [words(4, 12) for _ in range(4)]
        for k in case.chunks:
            context = [*header, *(token for chunk in chunks[:k] for token in chunk), *asked]
            for place, option in enumerate(options):
                requests.append(((f"{number}/{k}", str(place)), context, option))
    return requests


_LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4},
    "110m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8},
}
_HYBRID_SIZE = _LLAMA_SIZES["110m"] | {"num_key_value_heads": 4}
FORKED: dict[str, tuple[str, dict[str, Any]]] = {
    # LFM2: the leanest of the hybrids, so that what forking itself costs weighs most
    "hybrid": ("lfm2", _HYBRID_SIZE | {"layer_types": ["conv", "conv", "full_attention"] * 4}),
    "qwen-hybrid": (
        "qwen3_5_text",
        _HYBRID_SIZE
        | {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 3, "head_dim": 64}
        | {"linear_num_key_heads": 8, "linear_num_value_heads": 8}
        | {"linear_key_head_dim": 64, "linear_value_head_dim": 64},
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        _HYBRID_SIZE
        | {"layer_types": (["mamba"] * 5 + ["attention"]) * 2, "shared_intermediate_size": 2048}
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 24, "mamba_d_head": 64}
        | {"mamba_d_state": 64, "mamba_n_groups": 1, "mamba_chunk_size": 256},
    ),
    "mamba": ("mamba", {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}),
    "bloom": ("bloom", {"hidden_size": 768, "n_head": 12, "n_layer": 12}),
}
"""Models of about 100 million parameters (with 32 k entries) whose prefixes are shared by forking their cache."""
FORKED_TARGETS = {"k3-cloze-32k": 3.0}


def make_lm(size: str, vocabulary: int, device: str, dtype: torch.dtype) -> HFLM:
    """A random model with a given vocabulary, Llama-shaped or one of `FORKED`, loaded in lm_eval's ``hf``."""
    arch, shape = FORKED.get(size) or ("llama", _LLAMA_SIZES[size])
    if arch not in ("mamba", "bloom"):
        shape = shape | {"max_position_embeddings": 4096}
    torch.manual_seed(0)
    common = {"vocab_size": vocabulary, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(arch, **common, pad_token_id=0, **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device=device, max_length=4096)


class PeakMemory:
    """Peak memory of the process above its level on entry, in MiB: allocator on CUDA, resident set on Linux."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self.mib: float | None = None

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            try:
                gc.collect()
                ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that is free but kept would hide what a run needs
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
                self._before = _status("VmRSS")
            except OSError:
                self._before = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            self.mib = (torch.cuda.max_memory_allocated() - self._before) / 2**20
        elif self._before >= 0:
            self.mib = (_status("VmHWM") - self._before) / 2**20


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(key)


def measure(score: Callable[[], list[Answer]], device: str) -> tuple[Run, list[Answer]]:
    """Runs `score` once and returns its time, its peak and its answers."""
    with PeakMemory(device) as peak:
        start = time.perf_counter()
        answers = score()
        seconds = time.perf_counter() - start
    return Run(seconds, peak.mib), answers


def summary(runs: list[Run], seconds: Callable[[list[float]], float]) -> Run:
    """One time for several runs, and their highest peak."""
    peaks = [run.peak_mib for run in runs if run.peak_mib is not None]
    each = tuple(run.seconds for run in runs)
    return Run(seconds(list(each)), max(peaks) if peaks else None, each if len(each) > 1 else ())


def run_case(name: str, lm: HFLM, device: str, n_questions: int, batch_sizes: list[int], repeats: int) -> Row:
    """Scores one case with lm_eval's path at its better batch size and with ours, in turn, `repeats` times.

    Several repeats count with their best, of both. With one, ours runs before, between and after stock's long runs and
    counts with its median: on a machine that is slower at some moments than at others, one short run says little.
    """
    case, vocabulary = CASES[name], lm.model.config.vocab_size
    requests = make_requests(case, n_questions, vocabulary)
    part = requests[: len(requests) // _PART]
    HFLM._loglikelihood_tokens(lm, make_requests(case, 1, vocabulary, seed=1)[:1], disable_tqdm=True)  # warm up
    scorers: list[SharedPrefixScorer] = []

    def stock(requests: list[Request] = requests) -> list[Answer]:
        return HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)

    def ours(requests: list[Request] = requests) -> list[Answer]:
        scorers.append(SharedPrefixScorer(lm))  # a new one each time, so that each pays for its self-check
        return scorers[-1].loglikelihood(requests, disable_tqdm=True)

    tried: dict[str, Run] = {}
    if n_questions >= 2 * _PART and len(batch_sizes) > 1:
        for batch in batch_sizes:
            lm.batch_size_per_gpu = batch
            tried[str(batch)] = measure(lambda: stock(part), device)[0]
        limit = _CLEARLY * min(run.seconds for run in tried.values())
        batch_sizes = [batch for batch in batch_sizes if tried[str(batch)].seconds <= limit]

    runs: dict[str, list[Run]] = {str(batch): [] for batch in batch_sizes} | {"ours": []}
    answers: dict[str, list[Answer]] = {}
    better = min(batch_sizes, key=lambda batch: tried[str(batch)].seconds if tried else 0)
    for _ in range(repeats):
        for batch in batch_sizes:
            if repeats == 1:
                lm.batch_size_per_gpu = better  # where ours takes lm_eval's path, it does so at the better size too
                runs["ours"].append(measure(ours, device)[0])
            lm.batch_size_per_gpu = batch
            run, answers[str(batch)] = measure(stock, device)
            runs[str(batch)].append(run)
        better = min(batch_sizes, key=lambda batch: min(run.seconds for run in runs[str(batch)]))
        lm.batch_size_per_gpu = better
        run, answers["ours"] = measure(ours, device)
        runs["ours"].append(run)

    deepest = None
    if len(case.chunks) > 1:
        each = len(requests) // (n_questions * len(case.chunks))  # options of a question
        alone = [r for i, r in enumerate(requests) if i // each % len(case.chunks) == len(case.chunks) - 1]
        deepest = summary([measure(lambda: ours(alone), device)[0] for _ in range(3)], median)
        ours()  # whose figures the last scorer holds

    run = summary(runs.pop("ours"), median if repeats == 1 else min)
    best_runs = {key: summary(of_key, min) for key, of_key in runs.items()}
    best = min(best_runs.values(), key=lambda stock_run: stock_run.seconds)
    pairs = list(zip(answers[str(batch_sizes[0])], answers["ours"], strict=True))
    stock_runs = [*best_runs.values(), *tried.values()]  # a batch size left out for its time may need the least memory
    least = min((r.peak_mib for r in stock_runs if r.peak_mib is not None), default=None)
    stats = scorers[-1].stats
    return Row(
        case=name,
        questions=n_questions,
        requests=len(requests),
        stock=best_runs,
        tried=tried,
        ours=run,
        ratio=best.seconds / run.seconds,
        target=FORKED_TARGETS.get(name) if stats.path == "forked" else case.target,
        forwarded_over_distinct=stats.forwarded_tokens / stats.distinct_tokens if stats.distinct_tokens else None,
        memory_over_stock=run.peak_mib / least if run.peak_mib is not None and least else None,
        largest_difference=max(abs(a[0] - b[0]) for a, b in pairs),
        same_greedy=all(a[1] == b[1] for a, b in pairs),
        stats=stats,
        deepest=deepest,
    )


def _memory_over_deepest(row: Row) -> float | None:
    """Peak memory of several K in one pass over that of the largest alone."""
    if row.deepest is None or not row.deepest.peak_mib or row.ours.peak_mib is None:
        return None
    return row.ours.peak_mib / row.deepest.peak_mib


def broken_promises(row: Row, dtype: str) -> list[str]:
    """What the project promises of this case (on two CPU cores, in fp32) and this run didn't show."""
    broken = []
    least = row.target or 0.95
    if row.ratio < least:
        broken.append(f"ratio {row.ratio:.2f} < {least:g}")
    forked = row.stats.path == "forked"  # which computes short branches twice where that is cheaper
    if not forked and row.forwarded_over_distinct is not None and row.forwarded_over_distinct > 1.05:
        broken.append(f"forwarded/distinct {row.forwarded_over_distinct:.3f} > 1.05")
    if (
        row.case == "k3-cloze-128k"
        and not forked
        and not (row.memory_over_stock is not None and row.memory_over_stock <= 0.25)
    ):
        shown = "not measured" if row.memory_over_stock is None else f"{row.memory_over_stock:.2f}"
        broken.append(f"memory/stock {shown}, where 0.25 is promised")
    if row.deepest and row.ours.peak_mib and row.deepest.peak_mib and row.ours.peak_mib > 1.2 * row.deepest.peak_mib:
        broken.append(
            f"memory {row.ours.peak_mib / row.deepest.peak_mib:.2f} of the largest K's alone, 1.2 is promised"
        )
    if dtype == "float32" and not (row.largest_difference <= 1e-4 and row.same_greedy):
        broken.append(f"max |Δ| {row.largest_difference:.1e}, greedy {'same' if row.same_greedy else 'differs'}")
    return broken


def hardware(device: str) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    found: dict[str, Any] = {"cpu": cpu, "cpu_cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    packages = {name: version(name) for name in ("torch", "transformers", "lm_eval")}
    return found | {"python": platform.python_version(), "system": platform.system(), **packages}


def show(row: Row) -> None:
    def memory(run: Run) -> str:
        return "?" if run.peak_mib is None else f"{run.peak_mib:.0f} MiB"

    stock = ", ".join(f"bs{batch} {run.seconds:.2f} s ({memory(run)})" for batch, run in row.stock.items())
    target = f" (target {row.target:g})" if row.target else " (not below 0.95)"
    over = ""
    if row.forwarded_over_distinct is not None:
        checked = 1 + row.stats.check_tokens / row.stats.distinct_tokens
        over = f"; forwarded/distinct {row.forwarded_over_distinct:.3f} (with the self-check's {checked:.3f})"
    over += "" if row.memory_over_stock is None else f"; memory/stock {row.memory_over_stock:.2f}"
    if row.deepest:
        share = (
            "" if not row.deepest.peak_mib else f", {(row.ours.peak_mib or 0) / row.deepest.peak_mib:.2f} its memory"
        )
        over += f"; {row.ours.seconds / row.deepest.seconds:.2f} times the largest K alone{share}"
    ours = f"ours {row.ours.seconds:.2f} s ({memory(row.ours)}) by {row.stats.path}"
    exact = f"max |Δ| {row.largest_difference:.1e}, greedy {'same' if row.same_greedy else 'DIFFERS'}"
    print(f"{row.case:22} {row.ratio:6.2f}x{target}; {ours}; stock {stock}{over}; {exact}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen cases and says which promises weren't kept; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--small", action="store_true", help="tiny model, 4 questions, vocabularies of 2,000")
    parser.add_argument("--questions", type=int, help="questions per case, instead of each case's own number")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4], help="of lm_eval's path (default: 1 4)")
    parser.add_argument(
        "--repeats", type=int, default=1, help="take the best time of so many; one-… and two-… cases: 5 times that"
    )
    parser.add_argument("--model", choices=[*_LLAMA_SIZES, *FORKED], default="110m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/scoring-DATE-DEVICE.json)")
    options = parser.parse_args(arguments)
    if options.list:
        for name, case in CASES.items():
            print(f"{name:22} {case}")
        return 0
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    today = datetime.date.today().isoformat()
    target = options.output or RESULTS / f"scoring-{today}-{options.device.split(':')[0]}.json"
    report = {"date": today, "hardware": hardware(options.device), "options": vars(options) | {"output": target.name}}
    rows, lms = [], {}
    for name in options.cases:
        vocabulary = 2_000 if options.small else CASES[name].vocabulary
        questions = options.questions or (4 if options.small else CASES[name].questions)
        if vocabulary not in lms:
            lms.clear()
            size = "tiny" if options.small else options.model
            lms[vocabulary] = make_lm(size, vocabulary, options.device, getattr(torch, options.dtype))
        repeats = options.repeats * (5 if name.startswith(("one-", "two-")) else 1)
        rows.append(run_case(name, lms[vocabulary], options.device, questions, options.batch_sizes, repeats))
        show(rows[-1])
        if not options.small or options.output:  # after each case: what an interrupted run measured is kept
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if not options.small or options.output:
        print(f"written to {target}")
    broken = [f"{row.case}: {promise}" for row in rows for promise in broken_promises(row, options.dtype)]
    print("\n".join(["promises not kept:", *broken] if broken else ["every promise is kept"]))
    return 1 if broken and not options.small else 0


if __name__ == "__main__":
    sys.exit(main())
