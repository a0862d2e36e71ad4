"""Publishing: content goes to a Hub repository as one commit, or to somebody else's as one pull request.

What it is for: `look` says what the Hub has, and `publish` brings content there, or says what would go and how big it
is, for any kind of repository. What it does not do: it doesn't choose or check content (content.py), and it doesn't
know runs, scores or corpora.

The one idea: each try starts by looking at what the Hub has and sends only the difference, on top of the commit that it
looked at. So a second push sends nothing, a killed push leaves nothing on ``main`` (large files that have arrived are
kept by the Hub under their digests, and aren't sent again), and a lost answer is found out by the next look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import yaml

from lm_eval_kinject.errors import HubError, PublishError
from lm_eval_kinject.hub.client import RefusedError, Say, attempt, check_repo_id, open_hub, quiet, redact, status_of
from lm_eval_kinject.hub.content import PICKLED, Content

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Make", "Options", "Plan", "Published", "Remote", "look", "publish", "who_am_i"]

Kind = Literal["model", "dataset", "space"]


# Looking --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """What the Hub has in a repository at one commit; ``files`` are ``huggingface_hub.hf_api.RepoFile`` by path."""

    repo_id: str
    kind: Kind
    commit: str
    files: Mapping[str, Any]

    def read(self, path: str, say: Say = quiet) -> bytes | None:
        """The bytes of a file; None where there is no such file."""
        if path not in self.files:
            return None

        def work() -> bytes:
            local = open_hub().hf_hub_download(self.repo_id, path, repo_type=self.kind, revision=self.commit)
            return Path(local).read_bytes()

        return attempt(f"reading {path} of {self.repo_id}", work, say)

    def sha256(self, path: str, say: Say = quiet) -> str:
        """Digest of a file's bytes; downloads it only if it is small."""
        file = self.files[path]
        return str(file.lfs.sha256) if file.lfs is not None else hashlib.sha256(self.read(path, say) or b"").hexdigest()

    def has(self, content: Content, path: str) -> bool:
        """Whether a file of this name and content is there."""
        file = self.files.get(path)
        if file is None or file.size != content.size(path):
            return False
        if file.lfs is not None:
            return content.sha256(path) == file.lfs.sha256
        data = content.read(path)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id  # git's name for it

    @property
    def weights(self) -> dict[str, str]:
        """Path -> digest of a model's weights, anybody's."""
        endings = (".safetensors", ".gguf", *PICKLED)
        files = {path: file for path, file in self.files.items() if path.endswith(endings)}
        return {path: file.lfs.sha256 if file.lfs is not None else file.blob_id for path, file in files.items()}


Make = Callable[[Remote | None], Content]
"""Makes content from what the Hub has: for files that must say what else is there, or keep what others wrote."""


def look(repo_id: str, kind: Kind, revision: str | None = None, say: Say = quiet) -> Remote | None:
    """What the Hub has; None where there is no such repository (or none that this user may see).

    Raises:
        HubError: the Hub can't be asked; a `RefusedError` of status 404 where there is no such revision.
    """
    check_repo_id(repo_id)
    return attempt(f"looking at {repo_id}", lambda: _look(open_hub(), repo_id, kind, revision), say)


def _look(api: Any, repo_id: str, kind: Kind, revision: str | None = None) -> Remote | None:
    from huggingface_hub import errors
    from huggingface_hub.hf_api import RepoFile

    try:
        commit = str(api.repo_info(repo_id, repo_type=kind, revision=revision).sha)
    except errors.RevisionNotFoundError:
        raise
    except errors.RepositoryNotFoundError as problem:
        if status_of(problem) == 401:
            raise  # nobody is logged in, or with a bad token: that isn't the same as "there is none"
        return None
    found = api.list_repo_tree(repo_id, repo_type=kind, revision=commit, recursive=True)
    return Remote(repo_id, kind, commit, {file.path: file for file in found if isinstance(file, RepoFile)})


def who_am_i(say: Say = quiet) -> Mapping[str, Any]:
    """The account that is logged in, as the Hub tells of it: ``name``, ``orgs`` and so on."""
    return attempt("asking who you are", lambda: open_hub().whoami(), say)


# What is done, or would be --------------------------------------------------------------------------------------------


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
        return [*lines, f"{len(self.sizes)} files to send, {total}; {len(self.remove)} to remove"]


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


# Doing ----------------------------------------------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """What all that publishes or submits can be told.

    Attributes:
        public: open the repository to everybody once the content is there; otherwise visibility stays as it is.
        pull_request: commit to a pull request instead of ``main``; None: where one may not write.
        dry_run: change nothing, let the Hub look at the card, and return what would be done.
        say: hears what is being done.
    """

    public: bool
    pull_request: bool | None
    dry_run: bool
    say: Say


def publish(
    content: Content | Make,
    repo_id: str,
    *,
    kind: Kind,
    message: str,
    word: str,
    description: str = "",
    gone: Callable[[str], bool] = lambda path: False,
    **options: Unpack[Options],
) -> Published | Plan:
    """Brings content to the Hub as one commit.

    Args:
        content: what shall be there; or a function that makes it from what is there, called anew in each try.
        repo_id: ``owner/name``; made, private, if it isn't there.
        kind: what it is on the Hub.
        message: the commit's (or pull request's) title.
        word: tells a pull request of this from our others in the same repository: as long as it is open, a second call
            brings it up to date.
        description: the text of the commit.
        gone: says of a path that the repository has and the content hasn't whether it is to be removed. A pull request
            removes nothing: it goes to what is somebody else's.
        options: see `Options`.

    Returns:
        What was done, or with ``dry_run`` what would be.

    Raises:
        PublishError: the content may not be published.
        HubError: the Hub refuses or can't be reached; nothing of it is visible on ``main`` then.
    """
    public, pull_request = options.get("public", False), options.get("pull_request", False)
    dry_run, say = options.get("dry_run", False), options.get("say", quiet)
    check_repo_id(repo_id)
    if isinstance(content, Content):
        content.check()  # before the Hub is asked anything

    def go(request: bool) -> Published | Plan:
        mark = f"<!-- kinject: {word} -->" if request else None
        push = _Push(content, repo_id, kind, message, description, public and not request, gone, mark, say)
        target = f"pull request to {repo_id}" if request else f"push to {repo_id}"
        return attempt(f"looking at {repo_id}" if dry_run else target, lambda: push.run(open_hub(), dry_run), say)

    request = not _may_write(repo_id) if pull_request is None else pull_request
    try:
        done = go(request)
    except RefusedError as problem:
        # A member of an organisation may be one who only reads; who may write is for the Hub to say.
        if problem.status != 403 or pull_request is not None or request or look(repo_id, kind, say=say) is None:
            raise
        say(f"you may not commit to {repo_id}: opening a pull request instead")
        request, done = True, go(True)
    if public and not request and not dry_run:
        attempt(f"making {repo_id} public", lambda: _open_to_all(open_hub(), repo_id, kind), say)
    return done


def _may_write(repo_id: str) -> bool:
    """Whether a direct commit is worth a try: to what is one's own, or an organisation's that one doesn't just read."""
    me = who_am_i()
    orgs = {org.get("name") for org in me.get("orgs") or [] if org.get("roleInOrg") != "read"}
    return repo_id.split("/")[0] in {me["name"], *orgs}


def _open_to_all(api: Any, repo_id: str, kind: Kind) -> None:
    if api.repo_info(repo_id, repo_type=kind).private:
        api.update_repo_settings(repo_id, repo_type=kind, private=False)


@dataclass(frozen=True)
class _Push:
    """What `publish` was asked for; ``mark`` is for a pull request, None for a commit to ``main``."""

    content: Content | Make
    repo_id: str
    kind: Kind
    message: str
    description: str
    public: bool
    gone: Callable[[str], bool]
    mark: str | None
    say: Say

    def run(self, api: Any, dry_run: bool) -> Published | Plan:
        """One try, which looks at everything anew."""
        there, number = _look(api, self.repo_id, self.kind), None
        if self.mark:
            if there is None:
                raise HubError(f"There is no {self.kind} {self.repo_id} to open a pull request to: check the name.")
            number = self.open_request(api)
            if number is not None:
                there = _look(api, self.repo_id, self.kind, f"refs/pr/{number}") or there
        elif there is None and not dry_run:
            there = self.create(api)
        content = self.content if isinstance(self.content, Content) else self.content(there)
        content.check()
        plan = self.difference(content, there)
        if dry_run or there is None:  # None only in a dry run
            _check_card(content, self.kind)
            return plan
        return self.commit(api, content, plan, there.commit, number)

    def open_request(self, api: Any) -> int | None:
        """The number of our open pull request with this mark in its first comment, if there is one."""
        me = api.whoami()["name"]
        found = api.get_repo_discussions(
            self.repo_id, repo_type=self.kind, author=me, discussion_type="pull_request", discussion_status="open"
        )
        for one in found:
            events = api.get_discussion_details(self.repo_id, one.num, repo_type=self.kind).events
            texts = [event.content for event in events if event.type == "comment"]
            if texts and self.mark in texts[0]:
                return int(one.num)
        return None

    def create(self, api: Any) -> Remote:
        """Makes the repository, private."""
        self.say(f"creating the private {self.kind} {self.repo_id}")
        more = {"space_sdk": "gradio"} if self.kind == "space" else {}  # the only one that we write
        api.create_repo(self.repo_id, repo_type=self.kind, private=True, exist_ok=True, **more)
        made = _look(api, self.repo_id, self.kind)
        if made is None:
            raise HubError(f"The Hub made {self.repo_id} but doesn't show it. Run the same command again.")
        return made

    def difference(self, content: Content, remote: Remote | None) -> Plan:
        """What has to be sent and removed."""
        there = remote.files if remote is not None else {}
        same = {path for path in content.files if remote is not None and remote.has(content, path)}
        send = [path for path in sorted(content.files) if path not in same]
        stale = [path for path in sorted(there) if path not in content.files and self.gone(path)]
        return Plan(
            repo_id=self.repo_id,
            kind=self.kind,
            exists=remote is not None,
            add=tuple(path for path in send if path not in there),
            replace=tuple(path for path in send if path in there),
            remove=() if self.mark else tuple(stale),
            keep=tuple(sorted(same)),
            sizes={path: content.size(path) for path in send},
            left_out=content.left_out,
            public=self.public,
            pull_request=self.mark is not None,
        )

    def commit(self, api: Any, content: Content, plan: Plan, parent: str, number: int | None) -> Published:
        """Sends the difference, on top of the commit that it was taken to; into our pull request if there is one."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        url = f"{api.endpoint}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo_id}"
        request = None if number is None else f"{url}/discussions/{number}"
        if not plan.sizes and not plan.remove:
            self.say(f"{request or self.repo_id} has all of it: nothing to send")
            return Published(self.repo_id, self.kind, parent, url, (), (), request)
        total = _bytes(sum(plan.sizes.values()))
        self.say(f"sending {len(plan.sizes)} files ({total}) to {self.repo_id}, removing {len(plan.remove)}")
        made = api.create_commit(
            self.repo_id,
            [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content.files[path]) for path in plan.sizes]
            + [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in plan.remove],
            repo_type=self.kind,
            commit_message=self.message,
            commit_description=f"{self.description}\n\n{self.mark or ''}".strip(),
            parent_commit=parent,
            revision=None if number is None else f"refs/pr/{number}",
            create_pr=self.mark is not None and number is None,
        )
        sent = tuple(plan.sizes)
        return Published(self.repo_id, self.kind, str(made.oid), url, sent, plan.remove, request or made.pr_url)


def _check_card(content: Content, kind: Kind) -> None:
    """Asks the Hub whether it takes the card, which it does again by itself when one is pushed."""
    from huggingface_hub import RepoCard

    if "README.md" not in content.files:
        return
    text = content.read("README.md").decode("utf-8", errors="replace")
    try:
        RepoCard(text, ignore_metadata_errors=True).validate(repo_type=kind)
    except (ValueError, yaml.YAMLError) as problem:
        raise PublishError(redact(f"The Hub refuses the card: {problem}. Mend README.md's metadata.")) from None
