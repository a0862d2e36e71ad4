"""Scores: from the JSON that lm_eval writes to what the Hub and its cards take.

What it is for: `read_results` reads a run's results with its samples, `gaps` lists what somebody else would lack to
rerun it, `scores_of` makes one `Score` of each task and metric, and `eval_results_files`, `model_index` and `eval_yaml`
put them into the Hub's formats. What it does not do: it measures nothing, talks to no Hub, and never invents a setting
that a result doesn't state.

Two ideas. The Hub's formats know a data set and a value but no retrieval, so the setting (k, retriever, prompt, corpus)
is written into ``notes`` and its fingerprint into the file's name: one variant is one file, and two can't collide. And
a fingerprint says whether two things are the same, but gives nothing to anybody: whatever was scored with must also
have a place where others get it, a Hub repository at a commit or this package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from lm_eval_kinject.errors import ArgumentError, PublishError
from lm_eval_kinject.hub.client import listed
from lm_eval_kinject.provenance import fingerprint

__all__ = [
    "BUNDLED_CORPUS", "HUB_CORPUS", "Results", "Score", "check_benchmarks", "complete", "eval_results_files",
    "eval_yaml", "gaps", "interval", "latest", "merge_scores", "model_index", "parse_benchmarks", "read_results",
    "scores_of",
]  # fmt: skip

HUB_CORPUS, BUNDLED_CORPUS = "Hub dataset ", "bundled corpus "
"""How the source of a corpus starts that others can get; the rest is a name."""

FRAMEWORKS = frozenset(
    "exgentic inspect-ai math-arena mteb olmocr-bench harbor archipelago apex-evals screenspot-pro swe-bench "
    "swe-bench-pro nemo-evaluator yc-bench open-asr-leaderboard mdpbench parsebench video-mme-v2 claw-eval "
    "wildclawbench".split()
)
"""What ``evaluation_framework`` of a data set's ``eval.yaml`` may be: huggingface.js, ``packages/tasks/src/eval.ts``,
as of summer 2026. lm-evaluation-harness is not among them."""

_SHARES = ("acc", "acc_norm", "exact_match", "em", "pass@1")  # means of zeros and ones
_PROMPT = ("query", "placement", "order", "fusion")
_OF_THE_MOMENT = ("asked", "device", "pairs_cut")  # in what a stage says of itself; the same in a run that is the same
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    moment = Results(file, data).moment
    samples = {task: file.with_name(f"samples_{task}_{moment}.jsonl") for task in data["configs"]}
    return Results(file, data, {task: sample for task, sample in samples.items() if sample.is_file()})


# Whether somebody else could rerun it ---------------------------------------------------------------------------------


def complete(paths: Iterable[str | Path], *, samples: bool) -> list[Results]:
    """Reads results, and refuses those that nobody could rerun.

    Raises:
        PublishError: as `read_results`, or listing all `gaps`.
    """
    found = [one for path in paths for one in read_results(path)]
    problems = [f"{one.file.name}: {gap}" for one in found for gap in gaps(one, samples=samples)]
    if problems:
        headline = "These results don't say everything that a rerun needs; nothing was sent. Missing:"
        raise PublishError(listed(headline, problems))
    return found


def gaps(results: Results, *, samples: bool) -> list[str]:
    """What a result lacks before somebody else can rerun it, in words; empty where nothing is missing.

    Whether what is named is still there isn't asked.

    Args:
        results: as read.
        samples: whether the samples of every task must be there.
    """
    kinject, data = results.kinject, results.data
    if not kinject:
        return ["config.kinject: score with --model rag-hf (k=0 is lm_eval's hf to the bit), which notes what was used"]
    found = []
    for part in ("model", "peft", "delta", "tokenizer"):
        named = kinject.get(part) or {}
        if part in kinject and not named.get("commit"):
            remedy = "push it (`kinject push`) and score it by its Hub id"
            found.append(f"kinject.{part}.commit: {named.get('name')} has none; {remedy}")
    found += [] if "model" in kinject else ["kinject.model: which model was scored"]
    found += _retrieval_gaps(kinject) if kinject.get("k") else []
    for name in ("lm_eval_version", "date", "n-samples", "versions"):
        found += [] if data.get(name) else [f"{name}: written by lm_eval; has the file been edited?"]
    if not (kinject.get("environment") or {}).get("packages"):
        found.append("kinject.environment.packages")
    for task, n in (data.get("n-samples") or {}).items():
        if n.get("effective") != n.get("original"):
            found.append(f"all questions of {task}: it was run with --limit; run it without")
        if samples and task not in results.samples:
            found.append(f"the samples of {task}: run with --log_samples and leave the files side by side")
    return found


def _retrieval_gaps(kinject: Mapping[str, Any]) -> list[str]:
    corpora, retrievers = kinject.get("corpora") or (), kinject.get("retrievers") or ()
    found = [] if corpora else ["kinject.corpora: which corpus was searched"]
    found += [] if retrievers else ["kinject.retrievers: what searched it"]
    for corpus in corpora:
        place = f"kinject.corpora.{corpus.get('name')}"
        found += [] if corpus.get("fingerprint") else [f"{place}.fingerprint"]
        found += _corpus_gaps(place, corpus)
    for retriever in retrievers:
        place = f"kinject.retrievers.{retriever.get('name')}"
        found += [] if retriever.get("fingerprint") else [f"{place}.fingerprint"]
        for part in (retriever, *(retriever.get("parts") or ())):  # of a hybrid
            found += _encoder_gaps(place, part)
    ranker = ((kinject.get("pipeline") or {}).get("rerank") or {}).get("model")
    found += _encoder_gaps("kinject.pipeline.rerank", {"encoder": {"query_model": ranker}})
    return found + [f"kinject.prompt.{name}" for name in _PROMPT if name not in (kinject.get("prompt") or {})]


def _corpus_gaps(place: str, corpus: Mapping[str, Any]) -> list[str]:
    source = str(corpus.get("source") or "")
    if source.startswith(BUNDLED_CORPUS) or (source.startswith(HUB_CORPUS) and _is_commit(corpus.get("revision"))):
        return []
    if source.startswith(HUB_CORPUS):
        return [f"{place}.revision: no commit of that data set; score with corpus=OWNER/NAME@COMMIT"]
    push = "push it (`kinject push FOLDER --as dataset`) and score with corpus=OWNER/NAME"
    return [f"{place}: nobody else has it ({source or 'its source is not said'}); {push}"]


def _encoder_gaps(place: str, retriever: Mapping[str, Any]) -> list[str]:
    """Of the models that embed; retrievers without any, such as bm25, come with this package."""
    encoder = retriever.get("encoder") or {}
    local = {
        str(model.get("folder") or model.get("repo") or "a model")
        for model in (encoder.get("query_model"), encoder.get("passage_model"))
        if isinstance(model, Mapping) and "package" not in model and not _is_commit(model.get("commit"))
    }
    advice = "is on no Hub at a commit; push it and score with its Hub id"
    return [f"{place}.encoder: {name} {advice}" for name in sorted(local)]


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


# Scores ---------------------------------------------------------------------------------------------------------------


@checked_dataclass(frozen=True)
class Score:
    """One number of one run."""

    task: str = Field(description="lm_eval's name")
    metric: str = Field(description="without filter where that is none: acc")
    value: float = Field(description="as lm_eval has it")
    stderr: float | None = Field(description="likewise; None where there is none")
    n: int | None = Field(description="questions scored")
    shots: int | None = Field(description="few-shot examples")
    subject: str = Field(description="what was scored: adapter or delta if there was one, else model; Hub id or folder")
    subject_commit: str | None = Field(description="of the Hub; None for a folder")
    model: str = Field(description="the base")
    has_adapter: bool = Field(description="whether subject is an adapter (or delta) on model")
    k: int = Field(description="chunks in the prompt")
    setting: dict[str, Any] = Field(description="retrieval, prompt and loading; its fingerprint names the variant")
    dataset: str = Field(description="of the questions")
    config: str | None = Field(description="likewise")
    split: str | None = Field(description="likewise")
    date: str | None = Field(description="ISO 8601, UTC")
    limited: bool = Field(default=False, description="whether only a part was scored (--limit)")
    subject_fingerprint: str | None = Field(default=None, description="of a folder that was scored; None for the Hub")

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
            parts += [f"{key}={value}" for key, value in sorted(setting["prompt"].items()) if key in _PROMPT]
            parts += [f"corpus={name}@{digest[:12]}" for name, digest in sorted(setting["corpora"].items())]
        parts += self.how
        parts += [f"{self.shots}-shot"] if self.shots is not None else []
        parts += [f"chat template {setting['chat_template'][:12]}"] if setting.get("chat_template") else []
        parts += [f"lm_eval {setting['lm_eval']}", f"metric={self.metric}", f"variant {self.variant}"]
        return ", ".join(parts)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().rsplit("/", 1)[-1]).strip("-") or "x"


def scores_of(results: Results) -> list[Score]:
    """One score for each task and metric of a run, groups included; ties to settings that the run states."""
    found = []
    for task, numbers in results.data["results"].items():
        about = _about(results, task)
        for key, value in numbers.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_finite(value):
                continue  # "could not be scored" is no score
            stderr = numbers.get(f"{metric}_stderr,{name}")
            found.append(
                Score(
                    metric=metric if name == "none" else f"{metric},{name}",
                    value=float(value),
                    stderr=float(stderr) if _is_finite(stderr) else None,
                    **about,
                )
            )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _about(results: Results, task: str) -> dict[str, Any]:
    """What a score says beside its number."""
    data, kinject = results.data, results.kinject
    config = data["configs"].get(task) or {}
    counts = (data.get("n-samples") or {}).get(task) or {}
    model, adapter = kinject.get("model") or {}, kinject.get("peft") or kinject.get("delta") or {}
    subject, name, date = adapter or model, config.get("dataset_name"), data.get("date")
    return {
        "task": task,
        "n": counts.get("effective"),
        "shots": (data.get("n-shot") or {}).get(task),
        "subject": str(subject.get("name") or data.get("model_name") or "unknown"),
        "subject_commit": subject.get("commit"),
        "subject_fingerprint": subject.get("fingerprint"),
        "model": str(model.get("name") or data.get("model_name") or "unknown"),
        "has_adapter": bool(adapter),
        "k": int(kinject.get("k") or 0),
        "setting": _setting(results, task),
        "dataset": str(config.get("dataset_path") or task),
        "config": None if name is None else str(name),
        "split": config.get("test_split") or config.get("validation_split"),
        "date": f"{datetime.fromtimestamp(date, timezone.utc):%Y-%m-%dT%H:%M:%SZ}" if date else None,
        "limited": counts.get("effective") != counts.get("original"),
    }


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
        for slot in ("rerank", "probe"):
            stage = (kinject.get("pipeline") or {}).get(slot) or {}
            if stage.get("name", "none") != "none":
                setting[slot] = {name: stage[name] for name in stage if name not in _OF_THE_MOMENT}
    return setting


def latest(scores: Iterable[Score]) -> list[Score]:
    """Of scores about the same thing (task, metric, subject, variant) the latest, in the order given."""
    found: dict[tuple[str, ...], Score] = {}
    for score in scores:
        key = (score.task, score.metric, score.subject, score.variant)
        if key not in found or (score.date or "") >= (found[key].date or ""):
            found[key] = score
    return list(found.values())


def merge_scores(old: Iterable[Score], new: Iterable[Score]) -> list[Score]:
    """All scores, later ones in the place of earlier ones about the same thing; in a fixed order."""
    return sorted(latest((*old, *new)), key=lambda s: (s.task, s.metric, s.subject, s.variant))


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
