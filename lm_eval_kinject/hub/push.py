"""``kinject push``: a run, a base model, a corpus, a question set or a leaderboard becomes a Hub repository.

What it is for: `push_run`, `push_model`, `push_dataset` and `push_space` put together what goes (content.py), write the
card (cards.py), and hand it to publish.py. What it does not do: it trains and scores nothing, and looks into no table.

The one idea: a published run must not depend on this disk. Whatever it was made from has a name on the Hub at a commit,
or ships with this package; if not, the push is refused and says what to push first. And names prove nothing: a base or
corpus that was local has a fingerprint in the run's record, and what the Hub has must have the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.cards import FILE, CardFacts, Run, read_run, with_page
from lm_eval_kinject.hub.client import RefusedError, Say, check_repo_id, quiet
from lm_eval_kinject.hub.content import (
    PICKLED,
    TOKENIZER,
    USED,
    WEIGHTS,
    Content,
    collect,
    matches,
    model_files,
    replace_paths,
    to_json,
)
from lm_eval_kinject.hub.eval_results import (
    Score,
    check_benchmarks,
    eval_results_files,
    eval_yaml,
    read_results,
    scores_of,
)
from lm_eval_kinject.hub.publish import Kind, Plan, Published, Remote, look, publish
from lm_eval_kinject.hub.registry import READER
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lm_eval_kinject.hub.publish import Options

__all__ = [
    "card_with_configs", "check_subjects", "push_dataset", "push_model", "push_run", "push_space", "weights_at",
]  # fmt: skip

_OURS = (*USED, "log.jsonl", "recipe.yaml", "*.png")
_FILE_KEYS = ("paraphrases_file", "validation_file", "general_text")
_TABLES = (".parquet", ".jsonl", ".csv")
_SPACE = ("README.md", "app.py", "requirements.txt")
_DATA = ("*.parquet", "*.jsonl", "*.csv", "*/*.parquet", "*/*.jsonl", "*/*.csv", "README.md", "LICENSE*")


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
    check_base: bool = True,
    **options: Unpack[Options],
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
        check_base: make sure that the base on the Hub is the one that was trained on.
        options: see `Options`.

    Returns:
        What was done, or with ``dry_run`` what would be.

    Raises:
        PublishError: something may not be published as it is; says what to do.
        HubError: the Hub refuses or can't be reached.
    """
    say, root = options.get("say", quiet), Path(folder).expanduser()
    check_repo_id(repo_id)
    run = read_run(folder)
    base_there = _find_base(run, base, say)
    if check_base:
        _compare_base(run, base_there, say)
    corpus_there = _find_corpus(run, corpus, say)
    content = _run_content(root, run, base_there, corpus_there)
    facts = CardFacts(
        repo_id=repo_id,
        base=base_there.repo_id,
        base_revision=base_there.commit,
        corpus=corpus_there.repo_id if corpus_there else None,
        corpus_revision=corpus_there.commit if corpus_there else None,
        curve=next((path for path in sorted(content.files) if path.endswith(".png")), None),
        subjects=(root.resolve().name,),
        **({"licence": licence} if licence else _licence_of(base_there, say)),
    )
    scores = [score for path in results for one in read_results(path) for score in scores_of(one)]
    this = [score for score in scores if score.subject in (repo_id, *facts.subjects)]
    check_subjects(this, folder)
    _check_published(this, repo_id, content, say)
    check_benchmarks(benchmarks or {}, this)
    content = content.with_files(eval_results_files(this, benchmarks or {}))

    def make(remote: Remote | None) -> Content:
        return with_page(content, run, facts, scores, remote, say)

    make(None).check()  # before a repository is made for it
    message = f"Publish {run.recipe.variant} ({run.recipe.method}) on {run.corpus.name}"
    word = f"run {run.recipe_fingerprint[:16]}"
    return publish(make, repo_id, kind="model", message=message, word=word, gone=_stale, **options)


def _stale(path: str) -> bool:
    """Whether a file of the repository that isn't in a run is left over from another (or is a pickle)."""
    return matches(path, _OURS) or ("/" not in path and path.endswith(PICKLED))


def _run_content(folder: Path, run: Run, base: Remote, corpus: Remote | None) -> Content:
    """The run's files, in which the base and the corpus have their public names."""
    content = collect(folder)
    settings, weights = ("adapter_config.json", "adapter_model") if run.is_adapter else ("config.json", "model")
    lacking = [] if settings in content.files else [settings]
    lacking += [] if any(path.startswith(weights) for path in content.files) else [f"{weights}….safetensors"]
    if lacking:
        raise PublishError(f"The run {folder.name} isn't complete: {', '.join(lacking)} missing.")
    record = _public_record(run, base, corpus)
    recipe = yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True)
    changed: dict[str, Path | bytes] = {FILE: to_json(record), "recipe.yaml": recipe.encode()}
    # "revision" is PEFT's place for the base's commit.
    named = {"base_model_name_or_path": base.repo_id, "revision": base.commit}
    for name, key, public in (
        ("adapter_config.json", "base_model_name_or_path", named),
        ("config.json", "_name_or_path", {"_name_or_path": base.repo_id}),
    ):
        data = json.loads(content.read(name)) if name in content.files else {}
        changed |= {name: to_json({**data, **public})} if key in data else {}
    content = content.with_files(changed)
    # Whoever loads an adapter has its base's tokenizer anyway.
    tokenizer = [path for path in content.files if matches(path, TOKENIZER)]
    if run.is_adapter and all(base.has(content, path) for path in tokenizer):
        files = {path: source for path, source in content.files.items() if path not in tokenizer}
        return Content(files, (*content.left_out, *tokenizer))
    return content


def _public_record(run: Run, base: Remote, corpus: Remote | None) -> dict[str, Any]:
    data = run.plain()
    recipe = data["recipe"]
    kept = [key for key in _FILE_KEYS if recipe.get(key)]
    if kept:
        raise PublishError(
            f"The recipe names files of this disk ({', '.join(kept)}), so nobody else could follow it. Put them into "
            "the corpus's folder under their usual names, push that, and train with it."
        )
    places: dict[str, str] = {}
    if run.base.commit is None:
        places |= _put(recipe, "model", base)
    if corpus is not None and not (run.corpus.on_hub or run.corpus.bundled):
        places |= _put(recipe, "corpus", corpus)
    data = {key: replace_paths(value, places) for key, value in data.items()}
    trained_on = data["base"].get("trained_on", data["base"])
    return {**data, "base": {"name": base.repo_id, "identity": base.commit, "trained_on": trained_on}}


def _put(recipe: dict[str, Any], key: str, place: Remote) -> dict[str, str]:
    """Names a model or corpus in a recipe as the Hub has it.

    Returns:
        What else to replace in the record: the path that stood there, if it was one. Of most the trainer has left the
        last name only, which may stand elsewhere for something else.
    """
    old = str(recipe.get(key))
    recipe |= {key: place.repo_id, f"{key}_revision": place.commit}
    return {old: place.repo_id} if old.startswith((".", "~")) or "/" in old or "\\" in old else {}


# What it was made from ------------------------------------------------------------------------------------------------


def _find(name: str, kind: Kind, what: str, say: Say) -> Remote:
    """Looks ``owner/name`` or ``owner/name@revision`` up."""
    repo_id, _, revision = name.partition("@")
    remote = look(repo_id, kind, revision or None, say)
    if remote is None:
        raise PublishError(f"{what} {repo_id} is not on the Hub (or you may not see it): push it first.")
    return remote


def _find_base(run: Run, given: str | None, say: Say) -> Remote:
    """The base on the Hub, as given or as the run says."""
    name = given or (f"{run.base.name}@{run.base.commit}" if run.base.commit else None)
    if name is None:
        folder = assets_dir() / READER if run.base.name == READER else "FOLDER"
        raise PublishError(
            f"The base of this run, {run.base.name}, is local, and nobody else could load the result. Push it first "
            f"(`kinject push {folder} --as model --to owner/name`), then push the run with --base owner/name."
        )
    return _find(name, "model", "The base", say)


def _compare_base(run: Run, base: Remote, say: Say) -> None:
    """Makes sure that the named base is the one that was trained on: by commit, or by the folder's fingerprint."""
    commit, wanted = run.base.commit, run.base.fingerprint
    if commit == base.commit:
        return
    # What `fingerprint_model` would say of these files.
    if wanted and wanted == fingerprint({path: base.sha256(path, say) for path in model_files(base.files)}):
        return
    raise PublishError(
        f"The base {base.repo_id}@{base.commit[:12]} is not what this run was trained on ({run.base.name}, "
        f"{str(commit or wanted)[:16]}…). Push that very folder, or name its revision (--base owner/name@revision); "
        "--unchecked-base publishes all the same."
    )


def _find_corpus(run: Run, given: str | None, say: Say) -> Remote | None:
    """The corpus on the Hub, with the chunks, paraphrases and validation texts of the training; None: in this package.

    Raises:
        PublishError: it is local and none was given, isn't there, or has others.
    """
    from lm_eval_kinject.corpus.corpus import load_corpus

    if given is None and run.corpus.bundled:
        return None
    if given is None and run.corpus.on_hub:
        given = f"{run.corpus.name}@{run.corpus.revision}"
    if given is None:
        raise PublishError(
            f"The corpus of this run, {run.corpus.name}, is local, and nobody else could train on it. Push it first "
            "(`kinject push FOLDER --as dataset --to owner/name`), then push the run with --corpus owner/name."
        )
    there = _find(given, "dataset", "The corpus", say)
    problems = _beside_problems(run, there, say)
    found = load_corpus(f"{there.repo_id}@{there.commit}").fingerprint
    if run.recipe.stream:
        say(f"the corpus was read row by row: whether {there.repo_id} holds the same chunks isn't checked")
    elif found != run.corpus.fingerprint:
        problems.insert(0, f"other chunks (fingerprint {found[:16]}…, not {run.corpus.fingerprint[:16]}…)")
    if problems:
        raise PublishError(
            f"The corpus {there.repo_id}@{there.commit[:12]} is not what this run was trained on; it has "
            f"{', '.join(problems)}. Push that very corpus."
        )
    return there


def _beside_problems(run: Run, there: Remote, say: Say) -> list[str]:
    """Which of the paraphrases and the validation set, if the run used them, the Hub has not, or others of."""
    problems = []
    for stem, words in (("paraphrases", "paraphrases"), ("validation", "validation set")):
        wanted = getattr(run.corpus, stem)
        path = next((p for p in (f"{stem}.parquet", f"{stem}.jsonl") if p in there.files), None)  # the trainer's order
        if wanted and path is None:
            problems.append(f"no {words}")
        elif wanted and path is not None and (found := there.sha256(path, say)) != wanted:
            problems.append(f"another {path} (fingerprint {found[:16]}…, not {str(wanted)[:16]}…)")
    return problems


def _licence_of(base: Remote, say: Say) -> dict[str, str]:
    """The licence that a model's card states, as a card's facts: licence and, of ``other``, licence_name and _link."""
    from huggingface_hub import ModelCard

    data = base.read("README.md", say)
    if data is None:
        return {}
    card = ModelCard(data.decode("utf-8", errors="replace"), ignore_metadata_errors=True).data
    told = {part: card.get(f"license{part}") for part in ("", "_name", "_link")}
    found = {f"licence{part}": value for part, value in told.items() if isinstance(value, str) and value}
    if found.get("licence") != "other":
        return {key: value for key, value in found.items() if key == "licence"}
    link = found.get("licence_link")
    if link and "://" not in link:  # a file of that repository, which the new one hasn't got
        found["licence_link"] = f"https://huggingface.co/{base.repo_id}/blob/{base.commit}/{link}"
    return found


# Whose scores they are ------------------------------------------------------------------------------------------------


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
    mine = {path: content.sha256(path) for path in content.files if path.endswith(".safetensors")}
    for commit in sorted({s.subject_commit for s in scores if s.subject == repo_id and s.subject_commit}):
        if weights_at(repo_id, commit, say) != mine:
            raise PublishError(
                f"Some results are of {repo_id} at {commit[:12]}, which has other weights than this run. Score the run "
                "again, or leave them out of --results."
            )


def weights_at(repo_id: str, commit: str, say: Say) -> dict[str, str] | None:
    """Digests of the weights that a model has at a commit; None where there is no such commit."""
    try:
        remote = look(repo_id, "model", commit, say)
    except RefusedError as problem:
        if problem.status != 404:
            raise
        return None
    return remote.weights if remote else None


# Other things ---------------------------------------------------------------------------------------------------------


def push_model(folder: str | Path, repo_id: str, **options: Unpack[Options]) -> Published | Plan:
    """Publishes a transformers folder as it is, for runs to be based on; arguments and errors as for `push_run`."""
    check_repo_id(repo_id)
    content, name = collect(folder), Path(folder).name
    if "config.json" not in content.files or not any(matches(path, WEIGHTS) for path in content.files):
        raise PublishError(f"The folder {name} is no model: it needs config.json and safetensors weights.")
    if "README.md" not in content.files:
        options.get("say", quiet)(f"{name} has no README.md: the repository will have no card and no licence")
    message = f"Publish {Path(folder).resolve().name}"
    return publish(content, repo_id, kind="model", message=message, word="model", gone=_stale, **options)


def push_dataset(
    folder: str | Path, repo_id: str, *, framework: str = "lm-evaluation-harness", **options: Unpack[Options]
) -> Published | Plan:
    """Publishes a corpus or the data of a task folder as a data set.

    Tables named after a split (train, validation, dev, test) are one configuration, named after their folder; any other
    table is a configuration of its own, as tables that differ in their columns can't be loaded as one. An ``eval.yaml``
    is added where the Hub takes one for ``framework``; where it doesn't, ``say`` hears so.

    Raises:
        PublishError, HubError: as for `push_run`.
    """
    check_repo_id(repo_id)
    content, name = collect(folder, allowed=_DATA), repo_id.split("/")[1]
    configs = _configs(content)
    if not configs:
        raise PublishError(f"The folder {Path(folder).name} has no tables (.parquet, .jsonl, .csv) to publish.")
    text = content.read("README.md").decode("utf-8") if "README.md" in content.files else f"# {name}\n"
    content = content.with_files({"README.md": card_with_configs(text, configs)})
    tasks = [{"id": c, "config": c, "split": "test"} for c, splits in configs.items() if "test" in splits]
    if tasks:
        written, word = eval_yaml(name, f"Questions of {name}.", tasks, framework)
        options.get("say", quiet)(word)
        content = content.with_files({"eval.yaml": written} if written is not None else {})
    message = f"Publish {name}"
    return publish(content, repo_id, kind="dataset", message=message, word="data", gone=_is_table, **options)


def push_space(folder: str | Path, repo_id: str, **options: Unpack[Options]) -> Published | Plan:
    """Publishes the folder that ``kinject leaderboard --export`` has written as a Space; errors as for `push_run`."""
    from huggingface_hub import RepoCard

    check_repo_id(repo_id)
    content, name = collect(folder, allowed=_SPACE), Path(folder).name
    lacking = [file for file in _SPACE if file not in content.files]
    sdk = (
        ""
        if lacking
        else RepoCard(content.read("README.md").decode("utf-8"), ignore_metadata_errors=True).data.get("sdk")
    )
    if lacking or sdk != "gradio":
        what = f"it has no {', '.join(lacking)}" if lacking else f"its README.md says sdk: {sdk}, and not gradio"
        raise PublishError(
            f"The folder {name} is no leaderboard's Space, {what}: write it with `kinject leaderboard OWNER/DATASET "
            "--export FOLDER`."
        )
    return publish(content, repo_id, kind="space", message="Publish the leaderboard", word="space", **options)


def _is_table(path: str) -> bool:
    return path.endswith(_TABLES)


def _configs(content: Content) -> dict[str, dict[str, str]]:
    """Configuration -> split -> file."""
    configs: dict[str, dict[str, str]] = {}
    for path in filter(_is_table, sorted(content.files)):
        folder, _, file = path.rpartition("/")
        stem = file.rpartition(".")[0]
        # Questions split by file are one configuration; a corpus's tables have columns of their own.
        together = stem in ("train", "validation", "test", "dev") and folder.rpartition("/")[2] != "corpus"
        config, split = (folder or "default", stem) if together else (stem, "train")
        configs.setdefault(config, {})[split] = path
    return configs


def card_with_configs(text: str, configs: Mapping[str, Mapping[str, str | list[str]]]) -> bytes:
    """A data set's card with these configurations (split -> file), as ``datasets.load_dataset`` reads them."""
    from huggingface_hub import DatasetCard

    card = DatasetCard(text)
    card.data["configs"] = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in configs.items()
    ]
    return str(card).encode()
