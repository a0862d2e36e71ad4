"""What a run was made from, by its public name: the base and the corpus as the Hub has them, at a commit.

What it is for: `find_base` and `find_corpus` look up what a run names or the user says, and what they find is compared
with what the run was trained on. What it does not do: it publishes nothing (push.py does).

The one idea: names prove nothing. A base or corpus that was local has a fingerprint in the run's record, and what the
Hub has must have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.client import Say
from lm_eval_kinject.hub.content import model_files
from lm_eval_kinject.hub.publish import Remote, look, read_remote
from lm_eval_kinject.hub.registry import READER
from lm_eval_kinject.hub.run import BUNDLED_CORPUS, HUB_CORPUS, Run
from lm_eval_kinject.plugin import assets_dir

__all__ = ["Place", "compare_base", "find_base", "find_corpus", "licence_of"]


@dataclass(frozen=True)
class Place:
    """A repository at a commit."""

    repo_id: str
    commit: str

    @classmethod
    def find(cls, name: str, kind: Any, what: str, say: Say) -> tuple[Place, Remote]:
        """Looks ``owner/name`` or ``owner/name@revision`` up."""
        repo_id, _, revision = name.partition("@")
        remote = look(repo_id, kind, revision or None, say)
        if remote is None:
            raise PublishError(f"{what} {repo_id} is not on the Hub (or you may not see it): push it first.")
        return cls(repo_id, remote.commit), remote


def find_base(run: Run, given: str | None, say: Say) -> tuple[Place, Remote]:
    """Where the base is on the Hub, as given or as the run says, and what is there.

    Raises:
        PublishError: it is local and none was given, or isn't there.
    """
    name = given
    if name is None and run.base.get("commit"):
        name = f"{run.base['name']}@{run.base['commit']}"
    if name is None:
        folder = assets_dir() / READER if run.base["name"] == READER else "FOLDER"
        raise PublishError(
            f"The base of this run, {run.base['name']}, is local, and nobody else could load the result. Push it first "
            f"(`kinject push {folder} --as model --to owner/name`), then push the run with --base owner/name."
        )
    return Place.find(name, "model", "The base", say)


def compare_base(run: Run, place: Place, remote: Remote, say: Say) -> None:
    """Makes sure that the named base is the one that was trained on: by commit, or by the folder's fingerprint."""
    commit, wanted = run.base.get("commit"), run.base.get("fingerprint")
    if commit == place.commit or (commit is None and wanted is None):
        return
    if commit is None and wanted == _folder_fingerprint(place, remote, say):
        return
    raise PublishError(
        f"The base {place.repo_id}@{place.commit[:12]} is not what this run was trained on ({run.base['name']}, "
        f"{str(commit or wanted)[:16]}…). Push that very folder, or name its revision (--base owner/name@revision); "
        "--unchecked-base publishes all the same."
    )


def _folder_fingerprint(place: Place, remote: Remote, say: Say) -> str:
    """What `fingerprint_model` would say of a repository's files; downloads only the small ones."""
    from lm_eval_kinject.provenance import fingerprint

    return fingerprint({path: _digest(place, "model", path, remote, say) for path in model_files(remote.files)})


def find_corpus(run: Run, given: str | None, say: Say) -> Place | None:
    """Where the corpus is: on the Hub, or (None) in this package.

    Raises:
        PublishError: it is local and none was given, isn't there, or has other chunks, paraphrases or validation texts
            than were trained on.
    """
    from lm_eval_kinject.corpus.corpus import load_corpus

    source = str(run.corpus.get("source") or "")
    if given is None and source.startswith(HUB_CORPUS):
        given = f"{run.corpus['name']}@{run.corpus['revision']}"
    if given is None and source.startswith(BUNDLED_CORPUS):
        return None
    if given is None:
        raise PublishError(
            f"The corpus of this run, {run.corpus['name']}, is local, and nobody else could train on it. Push it first "
            "(`kinject push FOLDER --as dataset --to owner/name`), then push the run with --corpus owner/name."
        )
    place, remote = Place.find(given, "dataset", "The corpus", say)
    problems = _beside_problems(run, place, remote, say)
    found = load_corpus(f"{place.repo_id}@{place.commit}").fingerprint
    if run.recipe.get("stream"):
        say(f"the corpus was read row by row: whether {place.repo_id} holds the same chunks isn't checked")
    elif found != run.corpus["fingerprint"]:
        problems.insert(0, f"other chunks (fingerprint {found[:16]}…, not {run.corpus['fingerprint'][:16]}…)")
    if problems:
        raise PublishError(
            f"The corpus {place.repo_id}@{place.commit[:12]} is not what this run was trained on; it has "
            f"{', '.join(problems)}. Push that very corpus."
        )
    return place


def _beside_problems(run: Run, place: Place, remote: Remote, say: Say) -> list[str]:
    """Which of the paraphrases and the validation set, if the run used them, the Hub has not, or others of."""
    problems = []
    for stem, words in (("paraphrases", "paraphrases"), ("validation", "validation set")):
        wanted = run.corpus.get(stem)
        if not wanted:
            continue
        path = next((p for p in (f"{stem}.parquet", f"{stem}.jsonl") if p in remote.files), None)  # the trainer's order
        found = None if path is None else _digest(place, "dataset", path, remote, say)
        if found is None:
            problems.append(f"no {words}")
        elif found != wanted:
            problems.append(f"another {path} (fingerprint {found[:16]}…, not {str(wanted)[:16]}…)")
    return problems


def _digest(place: Place, kind: Literal["model", "dataset"], path: str, remote: Remote, say: Say) -> str:
    """sha256 of a file on the Hub; downloads it only if it is small."""
    return remote.files[path].sha256 or sha256(read_remote(place.repo_id, kind, path, remote, say) or b"").hexdigest()


def licence_of(place: Place, remote: Remote, say: Say) -> dict[str, str]:
    """The licence that a model's card states, as a card's facts: licence and, of ``other``, licence_name and _link."""
    from huggingface_hub import ModelCard

    data = read_remote(place.repo_id, "model", "README.md", remote, say)
    if data is None:
        return {}
    card = ModelCard(data.decode("utf-8", errors="replace"), ignore_metadata_errors=True).data
    told = {part: card.get(f"license{part}") for part in ("", "_name", "_link")}
    found = {f"licence{part}": value for part, value in told.items() if isinstance(value, str) and value}
    if found.get("licence") != "other":
        return {key: value for key, value in found.items() if key == "licence"}
    link = found.get("licence_link")
    if link and "://" not in link:  # a file of that repository, which the new one hasn't got
        found["licence_link"] = f"https://huggingface.co/{place.repo_id}/blob/{place.commit}/{link}"
    return found
