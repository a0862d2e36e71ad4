"""``kinject push``: a run or a base model becomes a Hub repository that others can use.

What it is for: `push_run` and `push_model` put together what goes (content.py), write the card (cards.py), and hand it
to publish.py. What it does not do: it trains and scores nothing; data sets are push_data.py's.

The one idea: a published run must not depend on this disk. Whatever it was made from has a name on the Hub at a commit,
or ships with this package; if not, the push is refused and says what to push first.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.cards import CardFacts, render_card, variant_of
from lm_eval_kinject.hub.client import RefusedError, Say, check_repo_id, quiet
from lm_eval_kinject.hub.content import (
    ALLOWED,
    PICKLED,
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    Content,
    collect,
    replace_paths,
    to_json,
)
from lm_eval_kinject.hub.eval_results import (
    Score,
    check_benchmarks,
    eval_results_files,
    latest,
    read_results,
    scores_of,
)
from lm_eval_kinject.hub.origins import Place, compare_base, find_base, find_corpus, licence_of
from lm_eval_kinject.hub.publish import Plan, Published, Remote, has_same, look, publish, read_remote
from lm_eval_kinject.hub.run import FILE, Run, parse_run, read_run

__all__ = ["push_model", "push_run"]

_HASHED = (*WEIGHTS, *SETTINGS, *TOKENIZER)
_OURS = (*_HASHED, "log.jsonl", "recipe.yaml", "*.png")
_SCORED = (".safetensors", ".gguf", *PICKLED)
"""Endings of weights, anybody's."""
_FILE_KEYS = ("paraphrases_file", "validation_file", "general_text")


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


# A run ----------------------------------------------------------------------------------------------------------------


def push_run(
    folder: str | Path,
    repo_id: str,
    *,
    base: str | None = None,
    corpus: str | None = None,
    results: Sequence[str | Path] = (),
    benchmarks: Mapping[str, str] | None = None,
    licence: str | None = None,
    public: bool = False,
    pull_request: bool = False,
    check_base: bool = True,
    dry_run: bool = False,
    say: Say = quiet,
) -> Published | Plan:
    """Publishes a finished run of the trainer, adapter or whole model.

    Args:
        folder: the run: weights, ``kinject.json``, log and curve.
        repo_id: where to; made, private, if it isn't there.
        base: the base on the Hub, ``owner/name`` or ``owner/name@revision``; default: what the run was trained on, if
            that was a Hub repository.
        corpus: the same for the corpus.
        results: files or folders of lm_eval's results, for the card and ``.eval_results/``.
        benchmarks: task -> data set id of a benchmark, see `eval_results_files`.
        licence: of the weights; default: the base's, if its card says.
        public: open the repository to everybody.
        pull_request: open a pull request instead of committing; for somebody else's repository.
        check_base: make sure that the base on the Hub is the one that was trained on.
        dry_run: change nothing and return the plan.
        say: hears what is being done.

    Returns:
        What was done, or with ``dry_run`` what would be.

    Raises:
        PublishError: something may not be published as it is; says what to do.
        HubError: the Hub refuses or can't be reached.
    """
    check_repo_id(repo_id)
    run = read_run(folder)
    place, base_remote = find_base(run, base, say)
    if check_base:
        compare_base(run, place, base_remote, say)
    corpus_place = find_corpus(run, corpus, say)
    content = _run_content(Path(folder).expanduser(), run, place, corpus_place)
    if run.is_adapter:
        content = _without_base_tokenizer(content, base_remote)
    facts = CardFacts(
        repo_id=repo_id,
        base=place.repo_id,
        base_revision=place.commit,
        corpus=corpus_place.repo_id if corpus_place else None,
        corpus_revision=corpus_place.commit if corpus_place else None,
        **({"licence": licence} if licence else licence_of(place, base_remote, say)),
        curve=next((path for path in sorted(content.files) if path.endswith(".png")), None),
        subjects=(Path(folder).expanduser().resolve().name,),
    )
    scores = [score for path in results for one in read_results(path) for score in scores_of(one)]
    this = [s for s in scores if s.subject in (repo_id, *facts.subjects)]
    check_subjects(this, folder)
    _check_published(this, repo_id, content, say)
    check_benchmarks(benchmarks or {}, this)
    content = content.with_files(eval_results_files(this, benchmarks or {}))

    def make(remote: Remote | None) -> Content:
        return with_record(content, run, facts, scores, remote, say)

    make(None).check()  # before a repository is made for it
    return publish(
        make,
        repo_id,
        kind="model",
        message=f"Publish {run.recipe['variant']} ({run.recipe['method']}) on {run.corpus['name']}",
        public=public,
        gone=_stale,
        pull_request=f"run {run.recipe_fingerprint[:16]}" if pull_request else None,
        dry_run=dry_run,
        say=say,
    )


def check_subjects(scores: Iterable[Score], folder: str | Path) -> None:
    """Makes sure that scores of a folder are of what it holds now; those of the Hub have a commit and aren't looked at.

    Raises:
        PublishError: the folder has been trained again, or the results are of another one of its name.
    """
    from lm_eval_kinject.models.results import model_identity

    local = [score for score in scores if score.subject_commit is None]
    now = model_identity(str(folder), commit=None, revision=None).get("fingerprint") if local else None
    other = sorted({f"{s.task} ({s.variant}, {s.date})" for s in local if s.subject_fingerprint != now})
    if other:
        raise PublishError(
            f"These results are not of what the folder {Path(folder).name} holds now: {', '.join(other)}. Score it "
            "again, or leave them out of --results."
        )


def _check_published(scores: Iterable[Score], repo_id: str, content: Content, say: Say) -> None:
    """The same for scores of the repository as it was at some commit: it must have had these very weights."""
    mine = {path: content.sha256(path) for path in content.files if path.endswith(_SCORED)}
    for commit in sorted({s.subject_commit for s in scores if s.subject == repo_id and s.subject_commit}):
        if weights_at(repo_id, commit, say) != mine:
            raise PublishError(
                f"Some results are of {repo_id} at {commit[:12]}, which has other weights than this run. Score the run "
                "again, or leave them out of --results."
            )


def weights_at(repo_id: str, commit: str, say: Say) -> dict[str, str] | None:
    """Digests of the weights that a model has at a commit; None where there is no such commit."""
    try:
        return weights_of(look(repo_id, "model", commit, say))
    except RefusedError as problem:
        if problem.status != 404:
            raise
        return None


def weights_of(remote: Remote | None) -> dict[str, str] | None:
    """Path -> digest of a repository's weights."""
    if remote is None:
        return None
    return {path: file.sha256 or file.oid for path, file in remote.files.items() if path.endswith(_SCORED)}


def _stale(path: str) -> bool:
    """Whether a file of the repository that isn't in a run is left over from another (or is a pickle)."""
    return _matches(path, _OURS) or ("/" not in path and path.endswith(PICKLED))


def _run_content(folder: Path, run: Run, base: Place, corpus: Place | None) -> Content:
    """The run's files, in which the base and the corpus have their public names."""
    lacking = [] if run.is_adapter else ["config.json"]
    weights = "adapter_model.safetensors" if run.is_adapter else "model"
    content = collect(folder, allowed=ALLOWED)
    lacking += [name for name in (["adapter_config.json"] if run.is_adapter else []) if name not in content.files]
    lacking = [name for name in lacking if name not in content.files]
    if lacking or not any(path.startswith(weights) for path in content.files):
        raise PublishError(
            f"The run {folder.name} isn't complete: {', '.join([*lacking, f'{weights}…safetensors'])} missing."
        )
    record = _public_record(run, base, corpus)
    recipe = yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True)
    changed: dict[str, Path | bytes] = {FILE: to_json(record), "recipe.yaml": recipe.encode()}
    for name, keys in (("adapter_config.json", ("base_model_name_or_path",)), ("config.json", ("_name_or_path",))):
        if name in content.files:
            changed |= _with_base(content, name, keys[0], base)
    return content.with_files(changed)


def _with_base(content: Content, name: str, key: str, base: Place) -> dict[str, Path | bytes]:
    data = json.loads(content.read(name))
    if key not in data:
        return {}
    data[key] = base.repo_id
    if name == "adapter_config.json":
        data["revision"] = base.commit  # PEFT's place for the base's revision
    return {name: to_json(data)}


def _public_record(run: Run, base: Place, corpus: Place | None) -> dict[str, Any]:
    data = json.loads(json.dumps(dict(run.data)))
    recipe = data["recipe"]
    kept = [key for key in _FILE_KEYS if recipe.get(key)]
    if kept:
        raise PublishError(
            f"The recipe names files of this disk ({', '.join(kept)}), so nobody else could follow it. Put them into "
            "the corpus's folder under their usual names, push that, and train with it."
        )
    places: dict[str, str] = {}
    if run.base_is_local:
        places |= _put(recipe, "model", base)
    if corpus is not None and run.corpus_is_local:
        places |= _put(recipe, "corpus", corpus)
    data = replace_paths(data, places)
    trained_on = data["base"].get("trained_on", data["base"])
    data["base"] = {"name": base.repo_id, "identity": base.commit, "trained_on": trained_on}
    return data if isinstance(data, dict) else {}


def _put(recipe: dict[str, Any], key: str, place: Place) -> dict[str, str]:
    """Names a model or corpus in a recipe as the Hub has it.

    Returns:
        What else to replace in the record: the path that stood there, if it was one. Of most the trainer has left the
        last name only, which may stand elsewhere for something else.
    """
    old = str(recipe.get(key))
    recipe |= {key: place.repo_id, f"{key}_revision": place.commit}
    return {old: place.repo_id} if old.startswith((".", "~")) or "/" in old or "\\" in old else {}


def _without_base_tokenizer(content: Content, base: Remote) -> Content:
    """Leaves an adapter's tokenizer out where it is the base's, which everybody who loads it has anyway."""
    mine = [path for path in content.files if _matches(path, TOKENIZER)]
    if not mine or not all(has_same(content, path, base) for path in mine):
        return content
    files = {path: source for path, source in content.files.items() if path not in mine}
    return Content(files, (*content.left_out, *mine))


def with_record(
    content: Content,
    run: Run,
    facts: CardFacts,
    scores: Sequence[Score],
    remote: Remote | None,
    say: Say,
    *,
    keep_files: bool = False,
) -> Content:
    """Adds what a repository says about itself: ``kinject.json`` with digests and scores, and the card.

    Scores that the repository has already stay as long as the weights are the same; a new score replaces an old one of
    the same task, metric, variant and subject. With ``keep_files`` the weights aren't in ``content``, and stay as the
    repository has them.
    """
    files = {path: content.sha256(path) for path in sorted(content.files) if _matches(path, _HASHED)}
    if keep_files:
        files = dict(run.files)
    there = read_remote(facts.repo_id, "model", FILE, remote, say)
    old = parse_run(there) if there is not None else None
    known = [Score.from_plain(one) for one in old.scores] if old is not None and old.files == files else []
    bases = (facts.base, *run.base_names)
    about = [s for s in scores if variant_of(s, (facts.repo_id, *facts.subjects), bases) is not None]
    merged = merge_scores(known, [_renamed(score, facts) for score in about])
    data = {
        **json.loads(content.read(FILE) if FILE in content.files else to_json(dict(run.data))),
        "published": {**asdict(facts), "subjects": [], "files": files},
        "scores": [score.plain() for score in merged],
    }
    card = render_card(Run(data), replace(facts, subjects=()), merged)
    return content.with_files({FILE: to_json(data), "README.md": card.encode()})


def _renamed(score: Score, facts: CardFacts) -> Score:
    """A score of the run's folder, or of its base's, is one of the repository's; their local names don't go out."""
    this = score.subject in (facts.repo_id, *facts.subjects)
    subject = facts.repo_id if this else facts.base
    return replace(score, subject=subject, model=facts.base if score.has_adapter else subject)


def merge_scores(old: Iterable[Score], new: Iterable[Score]) -> list[Score]:
    """All scores, later ones in the place of earlier ones about the same thing; in a fixed order."""
    return sorted(latest((*old, *new)), key=lambda s: (s.task, s.metric, s.subject, s.variant))


# A base model ---------------------------------------------------------------------------------------------------------


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    pull_request: bool = False,
    dry_run: bool = False,
    say: Say = quiet,
) -> Published | Plan:
    """Publishes a transformers folder as it is, for runs to be based on; arguments and errors as for `push_run`."""
    check_repo_id(repo_id)
    content = collect(folder)
    if "config.json" not in content.files or not any(_matches(path, WEIGHTS) for path in content.files):
        raise PublishError(f"The folder {Path(folder).name} is no model: it needs config.json and safetensors weights.")
    if "README.md" not in content.files:
        say(f"{Path(folder).name} has no README.md: the repository will have no card and no licence")
    return publish(
        content,
        repo_id,
        kind="model",
        message=f"Publish {Path(folder).resolve().name}",
        public=public,
        gone=_stale,
        pull_request="model" if pull_request else None,
        dry_run=dry_run,
        say=say,
    )
