"""``kinject adapters``: fetch, verify and register adapters; registry.py has the records and resolves names.

What it is for: `pull` downloads one, `verify` checks everything that a record claims against the Hub, the files and the
base, and `add` makes a record of a published run. What it does not do: it loads no model; of a base it reads only the
headers of its files.

The one idea: nothing is fetched from a repository before its list of files has been looked at, and nothing is handed on
that isn't exactly what was registered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.errors import ModelError, PublishError
from lm_eval_kinject.hub.cards import FILE, Run, parse_run, read_run
from lm_eval_kinject.hub.client import RefusedError, Say, attempt, check_repo_id, listed, open_hub, quiet
from lm_eval_kinject.hub.content import PICKLED, USED, collect, matches, tensor_shapes
from lm_eval_kinject.hub.eval_results import merge_scores, read_results, scores_of
from lm_eval_kinject.hub.publish import Remote, look
from lm_eval_kinject.hub.push import check_subjects
from lm_eval_kinject.hub.registry import (
    READER,
    Record,
    ResolvedAdapter,
    file_problems,
    find_record,
    folder_of,
    make_record,
    read_record,
    reader_problems,
    refusal,
    registry_dirs,
    resolve,
)
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import atomic_write, publish_folder

__all__ = ["add", "bundle", "pull", "verify"]

_USED = (*USED, FILE)


def pull(name: str, say: Say = quiet) -> ResolvedAdapter:
    """The same as `resolve`, for the command line: downloads, and says where it is."""
    found = resolve(name)
    say(f"{name} is at {found.path}")
    return found


# Verifying ------------------------------------------------------------------------------------------------------------


def verify(name: str, say: Say = quiet) -> Record:
    """Checks what a record claims, as far as files can tell.

    Downloads at the pinned revision; then: digests of all files; nothing pickled anywhere in the repository; no weights
    that the record doesn't list; recipe, corpus, base (name, and revision or fingerprint), variant, licence and scores
    as the run's own ``kinject.json`` has them; the base and revision that the adapter's configuration names; and that
    every tensor fits the base's. The ``kinject.json`` of a record with a ``folder`` has no licence and no scores, so
    there these two aren't checked; nor is anywhere whether training and scoring would give the same again.

    Raises:
        ModelError: listing everything that isn't as the record says.
        HubError: the Hub can't be asked.
    """
    record, registry = find_record(name)
    return _verified(record, registry, say)


def _verified(record: Record, registry: Path, say: Say) -> Record:
    problems = [] if record.repo is None else _repository_problems(record, say)
    if problems:  # nothing of such a repository is fetched
        raise ModelError(refusal(record, problems))
    folder = folder_of(record, registry)
    problems = file_problems(record, folder)
    if not problems:
        say(f"{len(record.files)} files are as registered, weights in safetensors only")
        problems = [*_claim_problems(record, folder), *reader_problems(record), *_base_problems(record, folder, say)]
    if problems:
        raise ModelError(refusal(record, problems))
    say(f"{record.name} is what its record says")
    return record


def _repository_problems(record: Record, say: Say) -> list[str]:
    assert record.repo is not None
    try:
        remote = look(record.repo, "model", record.revision, say)
    except RefusedError as problem:
        if problem.status != 404:
            raise
        return [f"the pinned revision {record.revision} is not there any more: the repository was rewritten"]
    if remote is None:
        return [f"there is no repository {record.repo} (or you may not see it)"]
    say(f"{record.repo}@{remote.commit[:12]}: {len(remote.files)} files")
    return listing_problems(remote, set(record.files))


def listing_problems(remote: Remote, known: set[str]) -> list[str]:
    """What is wrong with a repository's list of files: pickles anywhere, weights that nobody registered."""
    problems = [
        f"the repository holds {path}, which is pickled: whoever loads it runs its code"
        for path in remote.files
        if path.lower().endswith(PICKLED)
    ]
    unknown = [p for p in remote.files if p.endswith(".safetensors") and p not in known]
    return problems + [f"the repository holds weights that aren't registered: {path}" for path in unknown]


_CLAIMS = (
    "recipe", "corpus.fingerprint", "corpus.name", "base.name", "base.revision", "base.fingerprint", "adapter",
    "corpus.revision", "variant", "licence",
)  # fmt: skip
_MAY_BE_LEFT_OUT = ("corpus.revision", "variant", "licence")


def _claim_problems(record: Record, folder: Path) -> list[str]:
    """Where the record says something else than the run's own ``kinject.json``.

    That of a folder beside the record knows neither licence nor scores: those are the record's own word.
    """
    if FILE not in record.files:
        return [f"there is no {FILE}: recipe, corpus, base, licence and scores can't be checked"]
    try:
        run = parse_run((folder / FILE).read_bytes())
    except PublishError as problem:
        return [str(problem)]
    where = {"repo": record.repo, "revision": record.revision, "folder": record.folder}
    as_told, problems = _record_of(run, record.name, where, record.files), []
    claims, told = record.model_dump(), as_told.model_dump()
    for key in _CLAIMS:
        part, _, name = key.partition(".")
        claimed, known = (one[part].get(name) if name else one[part] for one in (claims, told))
        own_word = key in _MAY_BE_LEFT_OUT and (not claimed or (key == "licence" and record.repo is None))
        if claimed == known or own_word:
            continue
        if key in ("recipe", "corpus.fingerprint"):
            problems.append(f"the {part} is another one ({str(known)[:16]}…, not {claimed[:16]}…)")
        else:
            problems.append(f"{key} is {claimed!r} in the record, {known!r} in {FILE}")
    return problems + [
        f"the score {score.task} {score.metric} {score.value:g} (k={score.k}, n={score.n}) is not in {FILE}"
        for score in (record.scores if record.repo else ())
        if score not in as_told.scores
    ]


def _base_problems(record: Record, folder: Path, say: Say) -> list[str]:
    """Whether the adapter's configuration and the shapes of its tensors fit the base."""
    if not record.adapter:
        return []
    config = json.loads((folder / "adapter_config.json").read_bytes())
    named = config.get("base_model_name_or_path")
    if named != record.base.name:
        return [f"adapter_config.json is for the base {named!r}, the record for {record.base.name!r}"]
    if config.get("revision") != record.base.revision:
        revisions = f"{config.get('revision')} of {named}, the record for {record.base.revision}"
        return [f"adapter_config.json is for revision {revisions}"]
    base = _base_shapes(record, say)
    problems = []
    for path in record.files:
        if path.endswith(".safetensors"):
            problems += shape_problems(tensor_shapes(folder / path), base)
    if not problems:
        say(f"every tensor fits {record.base.name}")
    return problems


def _base_shapes(record: Record, say: Say) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the base's tensors; from the Hub only the headers of its files are fetched."""
    if record.base.name == READER:
        files = sorted((assets_dir() / READER).glob("*.safetensors"))
        if not files:
            raise ModelError("The embedded reader is missing: reinstall the package.")
        return {key: shape for file in files for key, shape in tensor_shapes(file).items()}

    def work() -> dict[str, tuple[int, ...]]:
        found = open_hub().get_safetensors_metadata(record.base.name, revision=record.base.revision)
        return {key: tuple(one.shape) for file in found.files_metadata.values() for key, one in file.tensors.items()}

    return attempt(f"reading the shapes of {record.base.name}", work, say)


_LORA = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?:\.[^.]+)*$")


def shape_problems(adapter: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which of a LoRA's matrices don't fit the base: A must be (rank, in), B (out, rank) of a weight (out, in).

    A weight that is stored the other way round (GPT-2's Conv1D) fits too. Tensors that aren't LoRA's (a whole layer
    that was trained along) must have the base's shape. Cartridges have no weight of the base's, and are left out.
    """
    problems = []
    for key, shape in adapter.items():
        if key == "prompt_embeddings":
            continue
        match = _LORA.match(key)
        module = match["module"] if match else key.removeprefix("base_model.model.").removesuffix(".weight")
        weight = base.get(f"{module}.weight")
        if weight is None:
            problems.append(f"{key}: the base has no module {module}")
        elif match is None:
            problems += [] if shape == weight else [f"{key} is {shape}, the base's is {weight}"]
        elif len(shape) == 2 and (shape[1] if match["part"].endswith("A") else shape[0]) not in weight:
            problems.append(f"{key} is {shape} and doesn't fit the base's {weight}")
    return problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])


# Adding ---------------------------------------------------------------------------------------------------------------


def add(spec: str, name: str | None = None, *, folder: Path | None = None, say: Say = quiet) -> Path:
    """Registers a published run.

    Args:
        spec: ``owner/name`` or ``owner/name@revision``; the commit that it means now is pinned.
        name: of the record; default: the repository's name in lower case.
        folder: where the record goes; default: one's own registry.
        say: hears what is being done.

    Returns:
        The record's file.

    Raises:
        ModelError: the repository can't be registered (a pickle, no ``kinject.json``, another base's shapes, …).
        HubError: the Hub can't be asked.
    """
    repo_id, _, revision = spec.partition("@")
    check_repo_id(repo_id)
    remote = look(repo_id, "model", revision or None, say)
    if remote is None:
        raise ModelError(f"There is no model {repo_id} on the Hub (or you may not see it): check the name.")
    problems = listing_problems(remote, set(remote.files))
    there = remote.read(FILE, say)
    if there is None:
        problems.append(f"it has no {FILE}: only what `kinject push` published can be registered")
    if problems or there is None:
        raise ModelError(listed(f"{repo_id} can't be registered:", problems))
    used = [path for path in sorted(remote.files) if matches(path, _USED)]
    files = {path: {"sha256": remote.sha256(path, say), "size": remote.files[path].size} for path in used}
    where = {"repo": repo_id, "revision": remote.commit}
    run = parse_run(there, f"{repo_id}/{FILE}")
    record = _record_of(run, name or repo_id.split("/")[1].lower(), where, files)
    target = folder or registry_dirs()[0]
    file = target / f"{record.name}.yaml"
    if file.is_file() and read_record(file) == record:
        say(f"{record.name} is registered already")
        return file
    if file.is_file():
        raise ModelError(f"There is a record {record.name} already ({file.name}): remove it, or give another --name.")
    _verified(record, target, say)  # before it is written: whoever looks meanwhile, or kills us, finds no bad record
    target.mkdir(parents=True, exist_ok=True)
    _write(file, record)
    say(f"{record.name} is registered: use it as adapter={record.name}")
    return file


def _write(file: Path, record: Record) -> None:
    plain = record.model_dump(mode="json", exclude_none=True)
    with atomic_write(file, "w") as out:
        yaml.safe_dump(plain, out, sort_keys=False, allow_unicode=True, width=110)


def _record_of(run: Run, name: str, where: Mapping[str, str | None], files: Mapping[str, Any]) -> Record:
    """The record of a run: what its ``kinject.json`` says, with a name and a place.

    Where that is no repository, the base is on this disk and has a fingerprint, and scores are of the record's name.
    """
    published, repo_id = run.published, where.get("repo")
    identity = {"revision": run.base.commit} if repo_id else {"fingerprint": run.base.fingerprint}
    plain = {
        "name": name,
        "summary": f"{run.recipe.variant} ({run.recipe.method}) of {run.corpus.name}",
        **where,
        "adapter": run.is_adapter,
        "base": {"name": published.get("base") or run.base.name, **identity},
        "corpus": {
            "name": published.get("corpus") or run.corpus.name,
            "revision": published.get("corpus_revision") or run.corpus.revision,
            "fingerprint": run.corpus.fingerprint,
        },
        "recipe": run.recipe_fingerprint,
        "variant": run.recipe.variant,
        "licence": published.get("licence_name") or published.get("licence"),
        "files": files,
        "scores": [
            {key: getattr(score, key) for key in ("task", "metric", "value", "n", "k")}
            | {"retriever": score.setting.get("retriever")}
            for score in run.scores
            if score.subject == (repo_id or name)
        ],
    }
    return make_record(plain, f"What {FILE} of {repo_id or name} says makes no record:")


def bundle(
    run_folder: str | Path,
    name: str,
    registry: str | Path,
    *,
    licence: str | None = None,
    results: Sequence[str | Path] = (),
    say: Say = quiet,
) -> Path:
    """Puts a run on the embedded reader into a registry with its files, so that it works without a network.

    For this project's own small adapters: what is only needed to use and check it is copied to ``registry/NAME/``, and
    the record ``NAME.yaml`` is written beside it.

    Args:
        run_folder: a finished run.
        name: of the record and the folder.
        registry: a folder of records, such as ``adapters/`` of a checkout.
        licence: of the weights.
        results: lm_eval's results of this run, for the record's scores.
        say: hears what is being done.

    Returns:
        The record's file.

    Raises:
        PublishError: the run can't be published (see `push_run`), or isn't on the reader.
        ModelError: the record isn't sound, or there is one of this name.
    """
    run = read_run(run_folder)
    if run.base.name != READER:
        raise PublishError(f"Only runs on the embedded reader come with the package, not one on {run.base.name}.")
    content = collect(run_folder, allowed=_USED)
    content.check()
    source = Path(run_folder).expanduser().resolve().name
    found = [s for path in results for one in read_results(path) for s in scores_of(one) if s.subject in (source, name)]
    check_subjects(found, run_folder)
    scores = [replace(score, subject=name) for score in merge_scores((), found)]
    run = run.model_copy(update={"scores": scores, "published": {"licence": licence}})
    files = {path: {"sha256": content.sha256(path), "size": content.size(path)} for path in sorted(content.files)}
    record = _record_of(run, name, {"folder": name}, files)
    target = Path(registry)
    if (target / f"{name}.yaml").exists():
        raise ModelError(f"There is a record {name} in {target.name} already: remove it first.")
    with publish_folder(target / name) as building:
        for path in content.files:
            (building / path).parent.mkdir(parents=True, exist_ok=True)
            (building / path).write_bytes(content.read(path))
    _write(target / f"{name}.yaml", record)
    say(f"{name} is in {target.name}: {record.size:,} bytes")
    return target / f"{name}.yaml"
