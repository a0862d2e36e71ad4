"""``kinject submit``: scores go to a model's page, or results and samples to a data set that a leaderboard reads.

What it is for: `submit_scores` puts lm_eval's numbers into a model repository (one's own directly, anybody's as a pull
request); `submit_results` puts the results and sample files into a data set repository in lm_eval's own layout. What it
does not do: it scores nothing, and it takes no result that doesn't say what it was made with.

The one idea: lm_eval names a submitted run after ``peft``, else ``pretrained``, so that k=0 and k=3 of one model share
a folder, and the second hides the first. Here the name carries the variant, the card's list of configurations is a
function of the files that are there, and an upload that fails is an error and not a log line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_kinject.errors import HubError, PublishError
from lm_eval_kinject.hub.cards import FILE, CardFacts, parse_run, with_page
from lm_eval_kinject.hub.client import Say, check_repo_id, listed, quiet
from lm_eval_kinject.hub.content import Content, local_paths, texts
from lm_eval_kinject.hub.eval_results import (
    Results,
    Score,
    check_benchmarks,
    complete,
    eval_results_files,
    latest,
    model_index,
    scores_of,
)
from lm_eval_kinject.hub.publish import Plan, Published, Remote, look, publish, who_am_i
from lm_eval_kinject.hub.push import card_with_configs, weights_at
from lm_eval_kinject.provenance import fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lm_eval_kinject.hub.publish import Options

__all__ = ["submit_results", "submit_scores", "submitted_name"]


# Scores to a model ----------------------------------------------------------------------------------------------------


def submit_scores(
    paths: Sequence[str | Path],
    repo_id: str,
    *,
    benchmarks: Mapping[str, str] | None = None,
    source: str | None = None,
    **options: Unpack[Options],
) -> Published | Plan:
    """Adds scores to a model repository: ``.eval_results/`` for benchmarks, ``model-index`` for all, and the card.

    Args:
        paths: lm_eval's results files or folders; of this model and, for the card's table, of its base.
        repo_id: the model that was scored.
        benchmarks: task -> ``dataset id#task id``; in addition to data sets that the Hub knows as benchmarks.
        source: address of the full results, for the attribution (see `submit_results`).
        options: see `Options`; by default a pull request where one may not write to the repository.

    Raises:
        PublishError: the provenance is incomplete, no score is of this model, or of weights that it doesn't have now.
        HubError: the Hub refuses or can't be reached.
    """
    say, benchmarks = options.get("say", quiet), benchmarks or {}
    options.setdefault("pull_request", None)
    check_repo_id(repo_id)
    scores = latest(score for one in complete(paths, samples=False) for score in scores_of(one))
    ours = [score for score in scores if score.subject == repo_id]
    if not ours:
        subjects = ", ".join(sorted({score.subject for score in scores})) or "nothing"
        raise PublishError(
            f"None of these results is of {repo_id}; they are of {subjects}. Give the model that was scored."
        )
    remote = look(repo_id, "model", say=say)
    if remote is None:
        raise HubError(f"There is no model {repo_id} on the Hub (or you may not see it): check the name.")
    scored = {s.subject_commit: weights_at(repo_id, str(s.subject_commit), say) for s in ours}
    check_benchmarks(benchmarks, ours)
    known = {**_benchmarks((score for score in ours if score.task not in benchmarks), say), **benchmarks}
    files = eval_results_files(ours, known, source=source, user=str(who_am_i(say)["name"]))

    def make(there: Remote | None) -> Content:
        if there is None:
            raise HubError(f"{repo_id} has gone meanwhile.")
        _refuse_other_weights(scored, there)
        _refuse_collisions(files, there, say)
        return _scored(there, ours, scores, say).with_files(files)

    _tell(make(remote), files, known, ours, say)
    variants = ", ".join(sorted({f"{s.task} {s.variant}" for s in ours}))
    return publish(
        make,
        repo_id,
        kind="model",
        message=f"Add scores of {ours[0].task}" + (" and others" if len({s.task for s in ours}) > 1 else ""),
        description=f"Scored with lm-evaluation-harness and lm-eval-kinject: {variants}.",
        word=f"scores {variants}",
        **options,
    )


def _benchmarks(scores: Iterable[Score], say: Say) -> dict[str, str]:
    """Which of the scores' data sets are benchmarks on the Hub: those whose ``eval.yaml`` has a fitting task.

    That is one of the same configuration and split; of several, the one that is called as lm_eval calls the task.
    """
    found: dict[str, str] = {}
    for score in scores:
        if score.task in found or score.dataset.count("/") != 1:
            continue
        try:
            remote = look(score.dataset, "dataset", say=say)
        except HubError:
            continue  # a local folder that looks like an id, or one that isn't for us: no benchmark then
        data = remote.read("eval.yaml", say) if remote is not None else None
        wanted = (score.config or "default", score.split or "test")
        fitting = [t for t in _tasks(data) if (t.get("config", "default"), t.get("split", "test")) == wanted]
        named = [t for t in fitting if t["id"] == score.task] or fitting
        if len(named) == 1:
            found[score.task] = f"{score.dataset}#{named[0]['id']}"
        elif named:
            ids = ", ".join(str(t["id"]) for t in named)
            say(f"{score.task}: {score.dataset} has several tasks of its split ({ids}); say which with --benchmark")
    return found


def _tasks(eval_yaml: bytes | None) -> list[Mapping[str, Any]]:
    """The tasks of somebody's ``eval.yaml``; none where it isn't one."""
    try:
        data = yaml.safe_load(eval_yaml or b"")
    except yaml.YAMLError:
        return []
    listed = data.get("tasks") if isinstance(data, Mapping) else None
    return [t for t in listed if isinstance(t, Mapping) and t.get("id")] if isinstance(listed, list) else []


def _scored(remote: Remote, ours: Sequence[Score], scores: Sequence[Score], say: Say) -> Content:
    """The card (and, in a repository of ours, the record) with the scores in it."""
    record = remote.read(FILE, say)
    run = parse_run(record, f"{remote.repo_id}/{FILE}") if record is not None else None
    if record is not None and run is not None and run.published:
        facts = {**run.published, "repo_id": remote.repo_id}
        card = CardFacts(**{key: value for key, value in facts.items() if key != "files"})
        return with_page(Content({FILE: record}), run, card, scores, remote, say)
    return Content({"README.md": _card_with_index(remote, ours, say)})


def _card_with_index(remote: Remote, ours: Sequence[Score], say: Say) -> bytes:
    """Somebody else's card with our entries in its ``model-index``; all others stay, text and order too."""
    from huggingface_hub import ModelCard

    name = remote.repo_id.split("/")[1]
    card = ModelCard((remote.read("README.md", say) or f"---\n---\n# {name}\n".encode()).decode("utf-8"))
    entries = model_index(ours)
    new = {_entry_key(entry) for entry in entries}
    kept = [entry for entry in card.data.get("eval_results") or [] if _entry_key(entry) not in new]
    card.data["eval_results"] = [*kept, *entries]
    card.data["model_name"] = card.data.get("model_name") or name
    return str(card).encode()


def _entry_key(entry: Any) -> tuple[Any, ...]:
    return entry.dataset_type, entry.dataset_config, entry.dataset_split, entry.metric_type, entry.metric_name


def _refuse_other_weights(scored: Mapping[str | None, Mapping[str, str] | None], there: Remote) -> None:
    """A score is of the weights at the commit that was scored; those on the page must be the same."""
    other = [str(commit)[:12] for commit, weights in scored.items() if weights != there.weights]
    if other:
        raise PublishError(
            f"These results are of {there.repo_id} at {', '.join(other)}, and its weights at {there.commit[:12]} are "
            "others (or that commit is gone). Score the model as it is now."
        )


def _refuse_collisions(files: Mapping[str, bytes], there: Remote, say: Say) -> None:
    """A file of ``.eval_results`` is replaced by the same variant only, never by another."""
    for path in files.keys() & there.files.keys():
        notes = {str(entry.get("notes")) for entry in yaml.safe_load(there.read(path, say) or b"[]") or []}
        if notes != {yaml.safe_load(files[path])[0]["notes"]}:
            told = ", ".join(notes)
            raise PublishError(f"{path} in {there.repo_id} is of another setting ({told}): it isn't overwritten.")


def _tell(
    content: Content, files: Mapping[str, bytes], known: Mapping[str, str], ours: Sequence[Score], say: Say
) -> None:
    rest = sorted({score.task for score in ours if score.task not in known})
    if rest:
        say(f"{', '.join(rest)}: not a registered benchmark, so the scores are in the card's model-index only")
    card = content.read("README.md").decode("utf-8", errors="replace")
    if files and re.search(r"^base_model:", card, re.MULTILINE):
        say(
            "the Hub's leaderboards leave out repositories that declare a base_model, as this one does: the score is "
            "on the model's page, and on the leaderboard only where derived models are shown (base_model=false)"
        )


# Results to a data set ------------------------------------------------------------------------------------------------


def submit_results(
    paths: Sequence[str | Path], repo_id: str, *, samples: bool = True, **options: Unpack[Options]
) -> Published | Plan:
    """Adds results and samples to a data set repository, in one commit, in lm_eval's layout.

    ``NAME/results_DATE.json`` and ``NAME/samples_TASK_DATE.jsonl``; the card lists the configurations ``NAME__results``
    and ``NAME__TASK``, each with a split for each date and ``latest``, which ``datasets.load_dataset`` reads.

    Args:
        paths: lm_eval's results files or folders.
        repo_id: the data set; made, private, if it isn't there.
        samples: whether samples are required and sent; without, only results are.
        options: see `Options`; by default a pull request where one may not write to the repository.

    Raises:
        PublishError: the provenance is incomplete, or a file names a local path.
        HubError: the Hub refuses or can't be reached.
    """
    say = options.get("say", quiet)
    options.setdefault("pull_request", None)
    check_repo_id(repo_id)
    named = [(submitted_name(one), one) for one in complete(paths, samples=samples)]
    files: dict[str, Path | bytes] = {}
    for name, one in named:
        files[f"{name}/{one.file.name}"] = _without_places(one, name)
        files |= {f"{name}/{file.name}": file for file in one.samples.values()} if samples else {}
    Content(files).check()

    def make(remote: Remote | None) -> Content:
        there = set(remote.files) if remote is not None else set()
        old = remote.read("README.md", say) if remote is not None else None
        return Content({**files, "README.md": _results_card(repo_id, old, there | set(files))})

    names = sorted({name for name, _ in named})
    done = publish(
        make,
        repo_id,
        kind="dataset",
        message=f"Add results of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
        word=f"results {', '.join(names)}",
        **options,
    )
    for name in [] if isinstance(done, Plan) else names:
        say(f'datasets.load_dataset("{repo_id}", "{name}__results", split="latest")')
    return done


def submitted_name(results: Results) -> str:
    """The folder of a run in a data set of results: one for each model (or adapter) and variant."""
    scores = scores_of(results)
    if not scores:
        raise PublishError(f"{results.file.name} has no score in it.")
    # A run's tasks can differ in shots and versions; the run has one name, whatever order they come in.
    common = {k: v for k, v in scores[0].setting.items() if k not in ("shots", "task_version")}
    tasks = sorted({(score.task, score.shots or 0) for score in scores})
    digest = fingerprint([common, tasks])[:8]
    subject = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", scores[0].subject)  # as lm_eval does
    return f"{subject}__{scores[0].variant.rpartition('-')[0]}-{digest}"


def _without_places(results: Results, name: str) -> bytes:
    """A results file in which nothing tells of this disk, under the name that it is submitted as."""
    data = json.loads(json.dumps(dict(results.data)))
    data |= {"model_name": scores_of(results)[0].subject, "model_name_sanitized": name}
    if local_paths(str(data.get("pretty_env_info"))):
        data["pretty_env_info"] = "left out: it named places on a disk"
    for config in data["configs"].values():
        source = (config.get("metadata") or {}).get("config_source")
        if isinstance(source, str):
            config["metadata"]["config_source"] = PurePosixPath(source.replace("\\", "/")).name
    found = [f"{where}: {path}" for where, text in texts(data) for path in local_paths(text)]
    if found:
        headline = f"{results.file.name} names places on this disk; score with Hub ids, or bundled names, instead:"
        raise PublishError(listed(headline, found))
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


_FILE = re.compile(r"(?P<name>[^/]+)/(?:results|samples_(?P<task>.+))_(?P<date>[^_/]+)\.jsonl?")


def _results_card(repo_id: str, old: bytes | None, paths: Iterable[str]) -> bytes:
    """The card of a data set of results: its configurations follow from the files, whatever stood there before."""
    configs: dict[str, dict[str, str | list[str]]] = {}
    for match in filter(None, map(_FILE.fullmatch, sorted(paths))):  # later dates come later
        config = re.sub(r"\W", "_", match["task"]) if match["task"] else "results"
        configs.setdefault(f"{match['name']}__{config}", {})[re.sub(r"[^\w.]", "_", match["date"])] = [match[0]]
    with_latest = {name: {**splits, "latest": list(splits.values())[-1]} for name, splits in sorted(configs.items())}
    text = f"---\n---\n# {repo_id.split('/')[1]}\n\nResults of lm-evaluation-harness with lm-eval-kinject.\n"
    return card_with_configs(old.decode("utf-8") if old else text, with_latest)
