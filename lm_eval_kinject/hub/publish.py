"""Publishing: content goes to a Hub repository as one commit, or to somebody else's as one pull request.

What it is for: `publish` says what would go and how big it is, or does it, for any kind of repository. What it
does not do: it doesn't choose or check content (content.py), and it doesn't know runs, scores or corpora.

The one idea: each try starts by looking at what the Hub has and sends only the difference, on top of the commit that it
looked at. So a second push sends nothing, a killed push leaves nothing on ``main`` (large files that have arrived are
kept by the Hub under their digests, and aren't sent again), and a lost answer is found out by the next look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from lm_eval_kinject.errors import HubError, PublishError
from lm_eval_kinject.hub.client import Say, attempt, check_repo_id, open_hub, quiet, redact, status_of
from lm_eval_kinject.hub.content import Content

__all__ = ["Make", "Plan", "Published", "Remote", "has_same", "look", "publish", "read_remote"]

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: ``sha256`` for large files, git's blob id for the others."""

    size: int
    oid: str
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """What the Hub has at one commit."""

    commit: str
    private: bool
    files: Mapping[str, RemoteFile]


Make = Callable[[Remote | None], Content]
"""Makes content from what the Hub has: for files that must say what else is there, or keep what others wrote."""


@dataclass(frozen=True)
class Plan:
    """What a push would do.

    Attributes:
        exists: whether the repository is there already.
        add, replace, remove, keep: paths; ``keep`` are those that the Hub has with the same content.
        sizes: bytes of the files that are added or replaced.
        left_out: files of the folder that aren't published.
        public: whether the repository is opened to everybody afterwards.
        pull_request: whether all this would be in a pull request.
    """

    repo_id: str
    kind: Kind
    exists: bool
    add: tuple[str, ...]
    replace: tuple[str, ...]
    remove: tuple[str, ...]
    keep: tuple[str, ...]
    sizes: Mapping[str, int]
    left_out: tuple[str, ...] = ()
    public: bool = False
    pull_request: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.add or self.replace or self.remove)

    def lines(self) -> list[str]:
        """The plan for a person to read: a line a file, and the sum."""
        width = max((len(path) for path in self.sizes), default=0)
        notes = [] if self.exists else ["new", "public" if self.public else "private"]
        notes += ["to be public"] if self.exists and self.public else []
        notes += ["a pull request"] if self.pull_request else []
        lines = [f"{self.kind} {self.repo_id}" + (f" ({', '.join(notes)})" if notes else "")]
        for sign, paths in (("+", self.add), ("~", self.replace)):
            lines += [f"  {sign} {path:<{width}}  {_bytes(self.sizes[path]):>10}" for path in paths]
        lines += [f"  - {path}" for path in self.remove]
        lines += [f"  = {path}  (the Hub has it)" for path in self.keep]
        lines += [f"    {path}  (stays here)" for path in self.left_out]
        total = _bytes(sum(self.sizes.values()))
        lines.append(f"{len(self.sizes)} files to send, {total}; {len(self.remove)} to remove")
        return lines


@dataclass(frozen=True)
class Published:
    """What a push did.

    Attributes:
        commit: of the branch or pull request, after it.
        sent, removed: paths; both empty where the Hub had everything.
        pull_request: its address, where one was opened or brought up to date.
    """

    repo_id: str
    kind: Kind
    commit: str
    url: str
    sent: tuple[str, ...]
    removed: tuple[str, ...]
    pull_request: str | None = None


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# Looking --------------------------------------------------------------------------------------------------------------


def look(repo_id: str, kind: Kind, revision: str | None = None, say: Say = quiet) -> Remote | None:
    """What the Hub has; None where there is no such repository (or none that this user may see).

    Raises:
        HubError: the Hub can't be asked.
    """
    check_repo_id(repo_id)
    return attempt(f"looking at {repo_id}", lambda: _look(open_hub(), repo_id, kind, revision), say)


def _look(api: Any, repo_id: str, kind: Kind, revision: str | None) -> Remote | None:
    from huggingface_hub import errors
    from huggingface_hub.hf_api import RepoFile

    try:
        info = api.repo_info(repo_id, repo_type=kind, revision=revision)
    except errors.RevisionNotFoundError:
        raise
    except errors.RepositoryNotFoundError as problem:
        if status_of(problem) == 401:
            raise  # nobody is logged in, or with a bad token: that isn't the same as "there is none"
        return None
    found = api.list_repo_tree(repo_id, repo_type=kind, revision=info.sha, recursive=True)
    files = {
        file.path: RemoteFile(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in found
        if isinstance(file, RepoFile)
    }
    return Remote(info.sha, bool(info.private), files)


def read_remote(repo_id: str, kind: Kind, path: str, remote: Remote | None, say: Say = quiet) -> bytes | None:
    """The bytes of a file at the commit that `look` found; None where there is no such file."""
    if remote is None or path not in remote.files:
        return None

    def work() -> bytes:
        local = open_hub().hf_hub_download(repo_id, path, repo_type=kind, revision=remote.commit)
        return Path(local).read_bytes()

    return attempt(f"reading {path} of {repo_id}", work, say)


def has_same(content: Content, path: str, remote: Remote) -> bool:
    """Whether the Hub has a file of this name and content."""
    return _same(content, path, remote.files.get(path))


def _same(content: Content, path: str, there: RemoteFile | None) -> bool:
    if there is None or there.size != content.size(path):
        return False
    if there.sha256 is not None:
        return content.sha256(path) == there.sha256
    source = content.files[path]
    data = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == there.oid


def _difference(
    content: Content, repo_id: str, kind: Kind, remote: Remote | None, gone: Callable[[str], bool] | None
) -> Plan:
    there = remote.files if remote is not None else {}
    same = {path for path in content.files if _same(content, path, there.get(path))}
    send = [path for path in sorted(content.files) if path not in same]
    stale = [path for path in sorted(there) if path not in content.files and gone is not None and gone(path)]
    return Plan(
        repo_id=repo_id,
        kind=kind,
        exists=remote is not None,
        add=tuple(path for path in send if path not in there),
        replace=tuple(path for path in send if path in there),
        remove=tuple(stale),
        keep=tuple(sorted(same)),
        sizes={path: content.size(path) for path in send},
        left_out=content.left_out,
    )


def _plan(
    content: Content | Make,
    repo_id: str,
    kind: Kind,
    public: bool,
    gone: Callable[[str], bool] | None,
    pull_request: str | None,
    say: Say,
) -> Plan:
    """What `publish` would do, and whether the Hub takes the card; changes nothing."""
    branch = None
    if pull_request:
        look_for = f"looking for a pull request to {repo_id}"
        branch = attempt(look_for, lambda: _branch(open_hub(), repo_id, kind, pull_request), say)
    remote = look(repo_id, kind, branch, say)
    if pull_request and remote is None:
        raise HubError(_nowhere(repo_id, kind))
    ready = _checked(content, remote)
    _check_card(ready, kind, say)
    made = _difference(ready, repo_id, kind, remote, None if pull_request else gone)
    return replace(made, public=public and not pull_request, pull_request=bool(pull_request))


def _check_card(content: Content, kind: Kind, say: Say) -> None:
    """Asks the Hub whether it takes the card, which it does again by itself when one is pushed."""
    from huggingface_hub import RepoCard

    if "README.md" not in content.files:
        return

    def work() -> None:
        text = content.read("README.md").decode("utf-8", errors="replace")
        try:
            RepoCard(text, ignore_metadata_errors=True).validate(repo_type=kind)
        except (ValueError, yaml.YAMLError) as problem:
            raise PublishError(redact(f"The Hub refuses the card: {problem}. Mend README.md's metadata.")) from None

    attempt("checking the card", work, say)


def _branch(api: Any, repo_id: str, kind: Kind, word: str) -> str | None:
    """Where our open pull request lies, if there is one."""
    if _look(api, repo_id, kind, None) is None:
        return None
    mine = _own_pull_request(api, repo_id, kind, _mark(word))
    return f"refs/pr/{mine.num}" if mine else None


def _mark(word: str) -> str:
    return f"<!-- kinject: {word} -->"


def _nowhere(repo_id: str, kind: Kind) -> str:
    return f"There is no {kind} {repo_id} to open a pull request to: check the name."


def _checked(content: Content | Make, remote: Remote | None) -> Content:
    made = content if isinstance(content, Content) else content(remote)
    made.check()
    return made


# Doing ----------------------------------------------------------------------------------------------------------------


def publish(
    content: Content | Make,
    repo_id: str,
    *,
    kind: Kind,
    message: str,
    description: str = "",
    public: bool = False,
    gone: Callable[[str], bool] | None = None,
    pull_request: str | None = None,
    dry_run: bool = False,
    say: Say = quiet,
) -> Published | Plan:
    """Brings content to the Hub as one commit.

    Args:
        content: what shall be there; or a function that makes it from what is there, called anew in each try.
        repo_id: ``owner/name``; made, private, if it isn't there.
        kind: what it is on the Hub.
        message: the commit's (or pull request's) title.
        description: its text.
        public: opens the repository to everybody once the content is there; otherwise visibility stays as it is.
        gone: says of a path that the repository has and the content hasn't whether it is to be removed. A pull request
            removes nothing: it goes to what is somebody else's.
        pull_request: commit to a pull request instead of ``main``; the word tells this one from our others in the same
            repository: as long as it is open, a second call brings it up to date.
        dry_run: change nothing, and return what would be done.
        say: hears what is being done.

    Raises:
        PublishError: the content may not be published.
        HubError: the Hub refuses or can't be reached; nothing of it is visible on ``main`` then.
    """
    check_repo_id(repo_id)
    if isinstance(content, Content):
        content.check()  # before the Hub is asked anything
    if dry_run:
        return _plan(content, repo_id, kind, public, gone, pull_request, say)
    target = f"pull request to {repo_id}" if pull_request else f"push to {repo_id}"

    def work() -> Published:
        api = open_hub()
        if pull_request:
            return _to_pull_request(api, content, repo_id, kind, message, description, pull_request, say)
        return _to_main(api, content, repo_id, kind, message, description, gone, say)

    done = attempt(target, work, say)
    if public and not pull_request:
        attempt(f"making {repo_id} public", lambda: _open_to_all(repo_id, kind), say)
    return done


def _to_main(
    api: Any,
    content: Content | Make,
    repo_id: str,
    kind: Kind,
    message: str,
    description: str,
    gone: Callable[[str], bool] | None,
    say: Say,
) -> Published:
    remote = _look(api, repo_id, kind, None)
    if remote is None:
        say(f"creating the private {kind} {repo_id}")
        api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        remote = _look(api, repo_id, kind, None)
        if remote is None:
            raise HubError(f"The Hub made {repo_id} but doesn't show it. Run the same command again.")
    content = _checked(content, remote)
    todo = _difference(content, repo_id, kind, remote, gone)
    commit = remote.commit
    if todo.empty:
        say(f"{repo_id} has all of it: nothing to send")
    else:
        _announce(todo, say)
        made = api.create_commit(
            repo_id,
            _operations(content, todo),
            repo_type=kind,
            commit_message=message,
            commit_description=description,
            parent_commit=remote.commit,
        )
        commit = str(made.oid)
    return Published(repo_id, kind, commit, _url(api, repo_id, kind), tuple(todo.sizes), todo.remove)


def _to_pull_request(
    api: Any,
    content: Content | Make,
    repo_id: str,
    kind: Kind,
    message: str,
    description: str,
    word: str,
    say: Say,
) -> Published:
    mark = _mark(word)
    mine = _own_pull_request(api, repo_id, kind, mark)
    remote = _look(api, repo_id, kind, mine and f"refs/pr/{mine.num}")
    if remote is None:
        raise HubError(_nowhere(repo_id, kind))
    content = _checked(content, remote)
    todo = _difference(content, repo_id, kind, remote, None)
    base = _url(api, repo_id, kind)
    url = f"{base}/discussions/{mine.num}" if mine else None
    if todo.empty:
        say(f"{url or repo_id} has all of it: nothing to send")
        return Published(repo_id, kind, remote.commit, base, (), (), url)
    _announce(todo, say)
    made = api.create_commit(
        repo_id,
        _operations(content, todo),
        repo_type=kind,
        commit_message=message,
        commit_description=f"{description}\n\n{mark}".strip(),
        parent_commit=remote.commit,
        **({"revision": f"refs/pr/{mine.num}"} if mine else {"create_pr": True}),
    )
    return Published(repo_id, kind, str(made.oid), base, tuple(todo.sizes), todo.remove, url or str(made.pr_url))


def _own_pull_request(api: Any, repo_id: str, kind: Kind, mark: str) -> Any:
    """Our open pull request with this mark in its first comment, if there is one."""
    me = api.whoami()["name"]
    found = api.get_repo_discussions(
        repo_id, repo_type=kind, author=me, discussion_type="pull_request", discussion_status="open"
    )
    for one in found:
        details = api.get_discussion_details(repo_id, one.num, repo_type=kind)
        texts = [event.content for event in details.events if event.type == "comment"]
        if texts and mark in texts[0]:
            return one
    return None


def _announce(todo: Plan, say: Say) -> None:
    total = _bytes(sum(todo.sizes.values()))
    say(f"sending {len(todo.sizes)} files ({total}) to {todo.repo_id}, removing {len(todo.remove)}")


def _operations(content: Content, todo: Plan) -> Sequence[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=_source(content, path)) for path in todo.sizes]
    return [*adds, *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in todo.remove)]


def _source(content: Content, path: str) -> str | bytes:
    source = content.files[path]
    return source if isinstance(source, bytes) else str(source)


def _url(api: Any, repo_id: str, kind: Kind) -> str:
    return f"{api.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"


def _open_to_all(repo_id: str, kind: Kind) -> None:
    api = open_hub()
    if api.repo_info(repo_id, repo_type=kind).private:
        api.update_repo_settings(repo_id, repo_type=kind, private=False)
