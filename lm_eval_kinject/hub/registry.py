"""The registry: one YAML record for each published adapter, and a name in ``--model_args`` instead of three arguments.

What it is for: `resolve` turns ``adapter=NAME`` into a folder at the record's own pinned revision. What it does not do:
it loads no model, writes no record (adapters.py does), and trusts nothing that it downloads: every file of a record has
a digest, and a file without one is not fetched.

The one idea: a record is a claim (these files, made from this base by this recipe out of this corpus) that is checked
against what the files say of themselves: `resolve` checks the files that it hands over, ``kinject adapters verify``
also the record's words against the run's ``kinject.json``. That the run did what it says only a rerun would show.

Records lie in ``adapters/`` of the package, and in ``$KINJECT_CACHE/adapters`` (default:
``~/.cache/lm-eval-kinject/adapters``) for one's own, which win. A record names a Hub repository and commit, or a folder
beside the record whose files come with it, which works without a network. The models may import this module.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.hub.client import listed
from lm_eval_kinject.hub.content import PICKLED, fingerprint_model, is_pickle, tensor_problems
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.plugin import adapters_dir, assets_dir
from lm_eval_kinject.provenance import fingerprint_file
from lm_eval_kinject.retrieval import cache_dir

__all__ = ["READER", "Record", "ResolvedAdapter", "check_base", "records", "registry_dirs", "resolve"]

_Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_PATH = re.compile(r"(?!\.)[A-Za-z0-9._-]+(/(?!\.)[A-Za-z0-9._-]+)*")
READER = "reader"


# Records --------------------------------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseOf(_Strict):
    """The model that an adapter sits on."""

    name: str = Field(description="`reader` (the embedded one) or a Hub id")
    revision: _Commit | None = Field(default=None, description="Hub commit")
    fingerprint: _Digest | None = Field(default=None, description="of the embedded reader's folder")


class CorpusOf(_Strict):
    """What was put into the weights."""

    name: str = Field(description="a bundled corpus or a Hub dataset")
    revision: str | None = Field(default=None, description="Hub commit or edition")
    fingerprint: _Digest = Field(description="of its chunks")


class FileOf(_Strict):
    """A file of the adapter."""

    sha256: _Digest = Field(description="of its bytes")
    size: int = Field(ge=0, description="bytes")


class ScoreOf(_Strict):
    """A score, for listings; the full ones are in the repository."""

    task: str = Field(description="lm_eval's name")
    metric: str = Field(description="without filter")
    value: float = Field(description="as lm_eval has it")
    n: int | None = Field(default=None, description="questions")
    k: int = Field(default=0, ge=0, description="chunks in the prompt")
    retriever: str | None = Field(default=None, description="where k is above 0")


class Record(_Strict):
    """One published adapter or model; the file ``NAME.yaml`` holds it."""

    name: str = Field(description="what stands in adapter=NAME: lower-case letters, digits, '-', '_', '.'")
    summary: str = Field(default="", description="one line for people")
    repo: str | None = Field(default=None, description="Hub id")
    revision: _Commit | None = Field(default=None, description="its commit; a branch or tag could move")
    folder: str | None = Field(default=None, description="instead of repo: a folder beside this record")
    adapter: bool = Field(default=True, description="false: a whole model")
    base: BaseOf = Field(description="what it was trained on")
    corpus: CorpusOf = Field(description="what was put in")
    recipe: _Digest = Field(description="fingerprint of the recipe")
    variant: str = Field(default="", description="ft-reg or ft-par")
    licence: str | None = Field(default=None, description="of the weights")
    files: dict[str, FileOf] = Field(description="every file that is used, with its digest")
    scores: list[ScoreOf] = Field(default_factory=list, description="a few, for listings")

    @model_validator(mode="after")
    def _together(self) -> Record:
        if not _NAME.fullmatch(self.name) or ".." in self.name:
            raise ValueError(f"name {self.name!r}: lower-case letters, digits, '-', '_' and '.' only")
        if (self.repo is None) == (self.folder is None):
            raise ValueError("give either repo (and revision) or folder")
        if self.repo is not None and self.revision is None:
            raise ValueError("revision: pin the repository to a commit of 40 digits")
        for path in [*self.files, *([self.folder] if self.folder else [])]:
            if not _PATH.fullmatch(path):
                raise ValueError(f"{path!r} is no path inside an adapter")
        pickled = [path for path in self.files if path.endswith(PICKLED)]
        if pickled:
            raise ValueError(f"{pickled[0]} is pickled: only safetensors weights can be registered")
        if not any(path.endswith(".safetensors") for path in self.files):
            raise ValueError("files: there are no weights (.safetensors) among them")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def lines(self) -> list[str]:
        """The record for a person to read."""
        where = f"{self.repo}@{self.revision}" if self.repo else "comes with this package"
        lines = [self.name, f"  {self.summary}"] if self.summary else [self.name]
        lines += [f"  where    {where}", f"  base     {self.base.name}@{self.base.revision or self.base.fingerprint}"]
        lines += [f"  corpus   {self.corpus.name} ({self.corpus.fingerprint[:16]})", f"  recipe   {self.recipe[:16]}"]
        lines += [f"  licence  {self.licence or 'not stated'}", f"  size     {self.size:,} bytes"]
        lines += [
            f"  {s.task} {s.metric} {s.value:.3f} ({f'k={s.k}, {s.retriever}' if s.k else 'closed-book'}, n={s.n})"
            for s in self.scores
        ]
        return lines


def registry_dirs() -> list[Path]:
    """Where records are looked for, in this order: one's own, then those of the package."""
    return [cache_dir() / "adapters", adapters_dir()]


def records() -> dict[str, Record]:
    """All records by name.

    Raises:
        ModelError: one can't be read; names the file and everything that is wrong with it.
    """
    found: dict[str, Record] = {}
    for folder in registry_dirs():
        for file in sorted(folder.glob("*.yaml")):
            record = read_record(file)
            found.setdefault(record.name, record)
    return dict(sorted(found.items()))


def read_record(file: Path) -> Record:
    """Reads and checks one record; errors as `records`."""
    try:
        record = make_record(yaml.safe_load(file.read_bytes()), f"The record {file.name} can't be used:")
    except yaml.YAMLError as problem:
        raise ModelError(f"The record {file.name} is no YAML: {problem}") from problem
    if record.name != file.stem:
        raise ModelError(f"The record {file.name} names itself {record.name!r}: file and name must be the same.")
    return record


def make_record(plain: Any, headline: str) -> Record:
    """A record of plain values; all that is wrong with them is in a `ModelError` under this headline."""
    try:
        return Record.model_validate(plain)
    except ValidationError as problem:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in problem.errors())
        raise ModelError(listed(headline, wrong)) from problem


def find_record(name: str) -> tuple[Record, Path]:
    """The record of a name and the registry that it lies in; errors as `resolve`."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ModelError(f"{name!r} is no adapter's name: `kinject adapters list` shows those that there are.")
    for folder in registry_dirs():
        file = folder / f"{name}.yaml"
        if file.is_file():
            return read_record(file), folder
    known = sorted({file.stem for folder in registry_dirs() for file in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(
        f"There is no adapter {name!r}.{guess} Known: {', '.join(known) or 'none'}. For one that isn't registered pass "
        "peft=OWNER/NAME, or register it with `kinject adapters add OWNER/NAME`."
    )


# Using ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """An adapter on this disk, with every file as its record says.

    Attributes:
        name: of the record.
        path: its folder: what goes to lm_eval as ``peft=`` (``pretrained=`` where ``adapter`` is False).
        repo: Hub id; None for one that comes with the package.
        revision: its commit; None likewise.
        adapter: whether it is an adapter, as against a whole model.
        base: name of the model that it sits on.
        base_revision: that model's commit.
    """

    name: str
    path: Path
    repo: str | None
    revision: str | None
    adapter: bool
    base: str
    base_revision: str | None

    @property
    def identity(self) -> dict[str, Any] | None:
        """What a result says of it: name and commit; None for one without a commit, whose folder names it."""
        if self.repo is None:
            return None
        return {"name": self.repo, "revision": self.revision, "commit": self.revision}


def resolve(name: str) -> ResolvedAdapter:
    """Finds an adapter by its name and brings it to this disk at its own pinned revision.

    Raises:
        ModelError: no such record, a record that can't be used, a revision that is gone, files that aren't what the
            record says, another embedded reader than it was trained on, or the Hub can't be reached and the cache
            hasn't got it.
    """
    record, registry = find_record(name)
    folder = folder_of(record, registry)
    problems = [*file_problems(record, folder), *reader_problems(record)]
    if problems:
        raise ModelError(refusal(record, problems))
    base = record.base
    return ResolvedAdapter(record.name, folder, record.repo, record.revision, record.adapter, base.name, base.revision)


def check_base(resolved: ResolvedAdapter, pretrained: str | None) -> None:
    """Makes sure that an adapter is used on its own base.

    Args:
        resolved: the adapter.
        pretrained: as given to lm_eval; None is the embedded reader. A local folder is taken on trust here: whether
            the shapes fit shows when the adapter is put on it.

    Raises:
        ModelError: the names differ.
    """
    if pretrained is not None and Path(pretrained).expanduser().is_dir():
        return
    given = READER if pretrained is None else pretrained
    if given != resolved.base:
        wanted = "leave pretrained= out" if resolved.base == READER else f"pass pretrained={resolved.base}"
        raise ModelError(
            f"adapter={resolved.name} was trained on {resolved.base} and can't be put on {given}: {wanted}."
        )


def folder_of(record: Record, registry: Path) -> Path:
    """Where the files are, downloaded if need be; nothing of them is checked yet."""
    if record.folder is not None:
        folder = registry / record.folder
        if not folder.is_dir():
            raise ModelError(
                f"The files of adapter {record.name} are missing ({record.folder}): reinstall the package."
            )
        return folder
    assert record.repo is not None  # the record's own check
    return fetch_snapshot(
        record.repo,
        kind="model",
        revision=record.revision,
        patterns=sorted(record.files),  # without any * or ?: see _PATH
        error=ModelError,
        offline_advice=f"The record of {record.name} pins this revision; if it is gone, the repository was rewritten.",
    ).path


def file_problems(record: Record, folder: Path) -> list[str]:
    """What is wrong with the files at hand, against the record."""
    problems = []
    for path, wanted in record.files.items():
        file = folder / path
        if not file.is_file():
            problems.append(f"{path} is missing")
        elif file.stat().st_size != wanted.size or fingerprint_file(file) != wanted.sha256:
            problems.append(f"{path} is not the file that was registered (its digest differs)")
        elif path.endswith(".safetensors"):
            problems += tensor_problems(path, file)
        elif is_pickle(file):
            problems.append(f"{path} is pickled: whoever loads it runs its code")
    return problems


def reader_problems(record: Record) -> list[str]:
    """Whether the embedded reader is the one that an adapter was trained on (where there is none, loading says so)."""
    folder = assets_dir() / READER
    wanted = record.base.fingerprint
    if not record.adapter or record.base.name != READER or wanted is None or not (folder / "config.json").is_file():
        return []
    found = fingerprint_model(folder)
    if found == wanted:
        return []
    editions = f"{wanted[:16]}…, not {found[:16]}…"
    return [f"it was trained on another edition of the embedded reader ({editions}): install its release"]


def refusal(record: Record, problems: list[str]) -> str:
    """What is wrong with an adapter, for an error."""
    where = f"{record.repo}@{record.revision}" if record.repo else "of this package"
    return listed(f"The adapter {record.name} ({where}) is refused:", problems)
