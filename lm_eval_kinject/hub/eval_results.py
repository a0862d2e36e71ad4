"""Scores: from the JSON that lm_eval writes to what the Hub and its cards take.

What it is for: `read_results` reads a run's results with its samples, `scores_of` makes one `Score` of each task and
metric, and `eval_results_files`, `model_index` and `eval_yaml` put them into the Hub's formats. What it does not do: it
measures nothing, talks to no Hub, and never invents a setting that a result doesn't state.

The one idea: the Hub's formats know a data set and a value but no retrieval, so the setting (k, retriever, prompt,
corpus) is written into ``notes`` and its fingerprint into the file's name. One variant is one file; two can't collide.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, PublishError
from lm_eval_kinject.provenance import fingerprint

__all__ = [
    "FRAMEWORKS",
    "Results",
    "Score",
    "eval_results_files",
    "eval_yaml",
    "check_benchmarks",
    "interval",
    "latest",
    "model_index",
    "parse_benchmarks",
    "read_results",
    "scores_of",
]

FRAMEWORKS = frozenset(
    "exgentic inspect-ai math-arena mteb olmocr-bench harbor archipelago apex-evals screenspot-pro swe-bench "
    "swe-bench-pro nemo-evaluator yc-bench open-asr-leaderboard mdpbench parsebench video-mme-v2 claw-eval "
    "wildclawbench".split()
)
"""What ``evaluation_framework`` of a data set's ``eval.yaml`` may be: huggingface.js, ``packages/tasks/src/eval.ts``,
as of summer 2026. lm-evaluation-harness is not among them."""

_SHARES = ("acc", "acc_norm", "exact_match", "em", "pass@1")  # means of zeros and ones
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """One run of lm_eval: its results file, read, and the sample files of the same moment."""

    file: Path
    data: Mapping[str, Any]
    samples: Mapping[str, Path] = field(default_factory=dict)  # task -> file

    @property
    def kinject(self) -> Mapping[str, Any]:
        """Our provenance in it; empty where another model type was scored."""
        found = (self.data.get("config") or {}).get("kinject")
        return found if isinstance(found, Mapping) else {}

    @property
    def moment(self) -> str:
        """The date in its file's name, as lm_eval writes it (``2026-11-21T03-47-38.011694``)."""
        return self.file.stem.removeprefix("results_")


def read_results(path: str | Path) -> list[Results]:
    """Reads results files of lm_eval.

    Args:
        path: a ``results_….json`` file, or a folder (``--output_path``) that holds some, at any depth.

    Raises:
        PublishError: there are none, or one isn't what lm_eval writes.
    """
    place = Path(path).expanduser()
    files = sorted(place.rglob("results_*.json")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise PublishError(f"There are no results at {place}: give the file or folder that --output_path names.")
    return [_read(file) for file in files]


def _read(file: Path) -> Results:
    try:
        data = json.loads(file.read_bytes())
    except ValueError as problem:
        raise PublishError(f"{file.name} is no JSON: it isn't a results file of lm_eval.") from problem
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict) or "configs" not in data:
        raise PublishError(f"{file.name} isn't a results file of lm_eval: it has no `results` and `configs`.")
    found = Results(file, data)
    samples = {}
    for task in data["configs"]:
        sample = file.with_name(f"samples_{task}_{found.moment}.jsonl")
        if sample.is_file():
            samples[task] = sample
    return Results(file, data, samples)


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One number of one run.

    Attributes:
        task: lm_eval's name.
        metric: without filter ("acc").
        value, stderr: as lm_eval has them; ``stderr`` None where there is none.
        n: questions scored.
        shots: few-shot examples.
        subject: what was scored: the adapter's (or delta's) name if there was one, else the model's (Hub id, or folder
            name).
        subject_commit: of the Hub; None for a folder.
        model: the base.
        has_adapter: whether ``subject`` is an adapter (or delta) on ``model``.
        k: chunks in the prompt.
        setting: everything about retrieval, prompt and how the weights were read, plain; its fingerprint names the
            variant.
        dataset, config, split: of the questions.
        date: ISO 8601, UTC.
        limited: whether only a part of the questions was scored (``--limit``).
        subject_fingerprint: of a folder that was scored; None for the Hub.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int | None
    shots: int | None
    subject: str
    subject_commit: str | None
    model: str
    has_adapter: bool
    k: int
    setting: Mapping[str, Any]
    dataset: str
    config: str | None
    split: str | None
    date: str | None
    limited: bool = False
    subject_fingerprint: str | None = None

    @property
    def variant(self) -> str:
        """A short, unique name of the setting: ``k3-minilm-1f2e3d4c``."""
        what = f"k{self.k}-{_slug(self.setting['retriever'])}" if self.k else "k0"
        return f"{what}-{fingerprint(self.setting)[:8]}"

    @property
    def how(self) -> list[str]:
        """How weights and tokenizer were read where that isn't as usual: ``dtype=float16``."""
        parts = {**(self.setting.get("loading") or {}), "tokenizer": self.setting.get("tokenizer")}
        return [f"{key}={value}" for key, value in sorted(parts.items()) if value is not None]

    @property
    def notes(self) -> str:
        """The setting in words, for the Hub's ``notes``."""
        setting = self.setting
        parts = [f"k={self.k}"]
        if self.k:
            parts += [f"retriever={setting['retriever']}"]
            parts += [f"{key}={value}" for key, value in sorted(setting["prompt"].items()) if key in _TOLD]
            parts += [f"corpus={name}@{digest[:12]}" for name, digest in sorted(setting["corpora"].items())]
        parts += self.how
        parts += [f"{self.shots}-shot"] if self.shots is not None else []
        parts += [f"chat template {setting['chat_template'][:12]}"] if setting.get("chat_template") else []
        parts += [f"lm_eval {setting['lm_eval']}", f"metric={self.metric}", f"variant {self.variant}"]
        return ", ".join(parts)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Score:
        """The reverse of `plain`."""
        return cls(**data)


_TOLD = ("query", "placement", "order", "fusion")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().rsplit("/", 1)[-1]).strip("-") or "x"


def scores_of(results: Results) -> list[Score]:
    """One score for each task and metric of a run, groups included; ties to settings that the run states."""
    data, found = results.data, []
    for task, numbers in data["results"].items():
        setting = _setting(results, task)
        for key, value in numbers.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                continue  # "could not be scored" is no score
            stderr = numbers.get(f"{metric}_stderr,{name}")
            found.append(
                _score(results, task, metric if name == "none" else f"{metric},{name}", value, stderr, setting)
            )
    return found


def _score(results: Results, task: str, metric: str, value: float, stderr: Any, setting: Mapping[str, Any]) -> Score:
    data, kinject = results.data, results.kinject
    config = data["configs"].get(task) or {}
    counts = (data.get("n-samples") or {}).get(task) or {}
    model, adapter = kinject.get("model") or {}, kinject.get("peft") or kinject.get("delta") or {}
    subject = adapter or model
    date = data.get("date")
    return Score(
        task=task,
        metric=metric,
        value=float(value),
        stderr=float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
        n=counts.get("effective"),
        shots=(data.get("n-shot") or {}).get(task),
        subject=str(subject.get("name") or data.get("model_name") or "unknown"),
        subject_commit=subject.get("commit"),
        model=str(model.get("name") or data.get("model_name") or "unknown"),
        has_adapter=bool(adapter),
        k=int(kinject.get("k") or 0),
        setting=setting,
        dataset=str(config.get("dataset_path") or task),
        config=config.get("dataset_name"),
        split=config.get("test_split") or config.get("validation_split"),
        date=None
        if not isinstance(date, int | float)
        else datetime.fromtimestamp(date, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        limited=counts.get("effective") != counts.get("original"),
        subject_fingerprint=subject.get("fingerprint"),
    )


def _setting(results: Results, task: str) -> dict[str, Any]:
    """All that makes two numbers of one model and task comparable or not, without seeds, timings and machines."""
    data, kinject = results.data, results.kinject
    k = int(kinject.get("k") or 0)
    setting: dict[str, Any] = {
        "k": k,
        "shots": (data.get("n-shot") or {}).get(task),
        "task_version": (data.get("versions") or {}).get(task),
        "lm_eval": data.get("lm_eval_version"),
        "chat_template": data.get("chat_template_sha"),
        "system_instruction": data.get("system_instruction_sha"),
    }
    tokenizer = kinject.get("tokenizer") or {}
    if tokenizer:
        setting["tokenizer"] = f"{tokenizer.get('name')}@{tokenizer.get('commit') or tokenizer.get('fingerprint')}"
    if kinject.get("loading"):
        setting["loading"] = dict(kinject["loading"])
    if k:
        setting["retriever"] = str(kinject.get("retriever") or "unknown")
        setting["retrievers"] = sorted(str(one.get("fingerprint")) for one in kinject.get("retrievers") or ())
        setting["prompt"] = dict(kinject.get("prompt") or {})
        setting["corpora"] = {str(c.get("name")): str(c.get("fingerprint")) for c in kinject.get("corpora") or ()}
    return setting


def latest(scores: Iterable[Score]) -> list[Score]:
    """Of scores about the same thing (task, metric, subject, variant) the latest, in the order given."""
    found: dict[tuple[str, ...], Score] = {}
    for score in scores:
        key = (score.task, score.metric, score.subject, score.variant)
        if key not in found or (score.date or "") >= (found[key].date or ""):
            found[key] = score
    return list(found.values())


def interval(score: Score) -> tuple[float, float] | None:
    """A 95 % interval of a score.

    For shares (accuracy and its like) Wilson's score interval, which stays inside 0…1 and is right for small n too;
    otherwise value ± 1.96 standard errors; None where neither n nor a standard error is known.
    """
    z = 1.959964
    if score.metric.split(",")[0] in _SHARES and score.n and 0 <= score.value <= 1:
        n, p = score.n, score.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(centre - half, 0.0), min(centre + half, 1.0)
    if score.stderr is not None:
        return score.value - z * score.stderr, score.value + z * score.stderr
    return None


# The Hub's formats ----------------------------------------------------------------------------------------------------


def eval_results_files(
    scores: Iterable[Score], benchmarks: Mapping[str, str], *, source: str | None = None, user: str | None = None
) -> dict[str, bytes]:
    """Files for ``.eval_results/``: one for each task and variant.

    Args:
        scores: of one model; of several runs of a variant the latest counts. Metrics other than a task's first
            (lm_eval's main one) are left out, as the format has one value for each task.
        benchmarks: task -> ``dataset id`` or ``dataset id#task id`` of a benchmark on the Hub; other tasks are left
            out (see `model_index`).
        source: address of the full results, if they are published.
        user: who published them, for the attribution.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, bytes] = {}
    for score in latest(scores):
        path = f".eval_results/kinject_{_slug(score.task)}_{score.variant}.yaml"
        if score.task not in benchmarks or path in files:
            continue
        dataset, _, task_id = benchmarks[score.task].partition("#")
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task_id or score.task,
            value=score.value,
            date=score.date,
            source_url=source,
            source_name="lm_eval results" if source else None,
            source_user=user if source else None,
            notes=score.notes,
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000)
        files[path] = text.encode()
    return files


def parse_benchmarks(texts: Iterable[str], where: str) -> dict[str, str]:
    """Reads ``TASK=OWNER/DATASET`` or ``TASK=OWNER/DATASET#TASK_ID`` for `eval_results_files`.

    Args:
        texts: one a task.
        where: the command, for the error.

    Raises:
        ArgumentError: listing all that aren't such.
    """
    found: dict[str, str] = {}
    problems = []
    for text in texts:
        task, equals, benchmark = text.partition("=")
        dataset, hash_mark, task_id = benchmark.partition("#")
        if not task or not equals or not _HUB_ID.fullmatch(dataset) or (hash_mark and not task_id):
            problems.append(f"--benchmark {text!r} must be TASK=OWNER/DATASET or TASK=OWNER/DATASET#TASK_ID")
        elif found.setdefault(task, benchmark) != benchmark:
            problems.append(f"--benchmark names two for {task}; remove one")
    if problems:
        raise ArgumentError(problems, where)
    return found


def check_benchmarks(benchmarks: Mapping[str, str], scores: Iterable[Score]) -> None:
    """Makes sure that every task of which a benchmark was named has a score.

    Raises:
        PublishError: one hasn't.
    """
    tasks = {score.task for score in scores}
    idle = [task for task in benchmarks if task not in tasks]
    if idle:
        raise PublishError(
            f"A benchmark was named for {', '.join(idle)}, of which there is no score of this model; scores are of "
            f"{', '.join(sorted(tasks)) or 'nothing'}. Name the task as lm_eval does, and give its results."
        )


def model_index(scores: Iterable[Score]) -> list[Any]:
    """The same as ``huggingface_hub.EvalResult``, for a card's ``model-index``: one for each score."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name="Multiple choice" if score.metric.split(",")[0] in _SHARES else "Text generation",
            dataset_type=score.dataset if _HUB_ID.fullmatch(score.dataset) else score.task,
            dataset_name=score.task,
            dataset_config=score.config,
            dataset_split=score.split,
            metric_type="accuracy" if score.metric == "acc" else score.metric,
            metric_name=f"{score.metric} ({score.variant})",
            metric_value=score.value,
        )
        for score in scores
    ]


def eval_yaml(
    name: str, description: str, tasks: Sequence[Mapping[str, str]], framework: str
) -> tuple[bytes | None, str]:
    """A data set's ``eval.yaml``, which makes it a benchmark with a leaderboard.

    Args:
        name: for people.
        description: a sentence or two.
        tasks: ``id``, ``config`` and ``split`` of each.
        framework: what it is to be evaluated with.

    Returns:
        The file, or None where the Hub would refuse it; and a sentence for the user.
    """
    import yaml

    if framework not in FRAMEWORKS:
        return None, (
            f"No eval.yaml was written: the Hub's list of evaluation frameworks doesn't have {framework}, so this data "
            "set can't be registered as a benchmark. Scores on it go into model-index instead, which every model page "
            "shows and no leaderboard reads."
        )
    data = {
        "name": name,
        "description": description,
        "evaluation_framework": framework,
        "tasks": [dict(t) for t in tasks],
    }
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return (
        text.encode(),
        "eval.yaml is written; the Hub shows a leaderboard once its staff put the data set on its list.",
    )
