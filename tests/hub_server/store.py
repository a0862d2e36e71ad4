"""What the test Hub keeps: accounts, repositories, commits, references, pull requests and large files, in memory.

What it does not do: HTTP (server.py), git's own object format, or permissions finer than "may write here".

The one idea: a commit is an immutable mapping from path to `Entry` (a digest into one pool of bytes), so that
publishing is moving a reference from one mapping to another, and a half-made commit can't be seen by anyone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

GITATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n"
    for ending in (
        "7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar "
        "safetensors tar tflite tgz wasm xz zip zst"
    ).split()
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Refused(Exception):
    """A request that the Hub answers with an error: HTTP status, message, and the client's error code if any."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code
        super().__init__(f"{status} {message}")


@dataclass(frozen=True)
class Entry:
    """A file of a commit: ``sha256`` finds its bytes; ``lfs`` files are large-file pointers in git."""

    sha256: str
    size: int
    oid: str  # git's name of the blob (of the pointer, for an LFS file)
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    id: str
    parent: str | None
    files: Mapping[str, Entry]
    title: str
    message: str
    author: str
    date: str


@dataclass
class Discussion:
    """A discussion or pull request; ``base`` is the branch a pull request wants to change."""

    num: int
    title: str
    author: str
    is_pull_request: bool
    date: str
    status: str = "open"
    base: str = "refs/heads/main"
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Repo:
    """A repository of any type; ``refs`` maps full reference names to commit ids."""

    id: str
    type: str
    private: bool
    created: str
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    lfs: set[str] = field(default_factory=set)  # large files that were uploaded to this repository
    gated: Any = False

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request, full commit id or its beginning (7 digits) means."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [commit for key, commit in self.commits.items() if key.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def ref(self, revision: str) -> str:
        """The full name of a reference that can be committed to."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and its ancestors, newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found


class Store:
    """All of the test Hub's data. Every public method takes the lock; reading what it returns needs none.

    Args:
        regular_limit: files of at least this many bytes go through LFS, whatever their name.
    """

    def __init__(self, regular_limit: int = 10 << 20) -> None:
        self.lock = threading.RLock()
        self.blobs: dict[str, bytes] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, tuple[str, str]] = {}  # token -> (user, "read" or "write")
        self.orgs: dict[str, set[str]] = {}  # organisation -> its members
        self.regular_limit = regular_limit
        self._now = datetime(2030, 1, 1, tzinfo=timezone.utc)

    # Accounts -------------------------------------------------------------------------------------------------------

    def add_user(self, name: str, token: str, role: str = "write") -> None:
        """Makes a token of a user known."""
        with self.lock:
            self.tokens[token] = (name, role)

    def may_write(self, repo_id: str, user: str | None) -> bool:
        """Whether a user owns a repository, or is in the organisation that does."""
        owner = repo_id.split("/")[0]
        return user is not None and (owner == user or user in self.orgs.get(owner, ()))

    # Repositories ---------------------------------------------------------------------------------------------------

    def now(self) -> str:
        """A clock that moves by one second at each look, so that commits never share their date."""
        with self.lock:
            self._now += timedelta(seconds=1)
            return self._now.strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def create(self, kind: str, repo_id: str, user: str, private: bool) -> Repo:
        """Makes a repository with the Hub's first commit, which holds ``.gitattributes``."""
        with self.lock:
            owner, _, name = repo_id.partition("/")
            if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".")):
                raise Refused(400, f"Invalid repo name: {repo_id}")
            if not self.may_write(repo_id, user):
                raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
            repo = Repo(repo_id, kind, private, self.now())
            first = self.commit(
                repo, None, {".gitattributes": self.put(GITATTRIBUTES.encode())}, "initial commit", user
            )
            repo.refs["refs/heads/main"] = first.id
            self.repos[kind, repo_id] = repo
            return repo

    def find(self, kind: str, repo_id: str, user: str | None) -> Repo:
        """The repository, if this user may see it; somebody else's private one looks as if there was none."""
        with self.lock:
            repo = self.repos.get((kind, repo_id))
            if repo is None or (repo.private and not self.may_write(repo_id, user)):
                status = 404 if user else 401
                raise Refused(
                    status, "Repository not found" if user else "Invalid username or password.", "RepoNotFound"
                )
            return repo

    # Content --------------------------------------------------------------------------------------------------------

    def put(self, data: bytes, *, lfs: bool = False) -> Entry:
        """Keeps bytes in the pool and returns the entry that names them."""
        digest = hashlib.sha256(data).hexdigest()
        with self.lock:
            self.blobs[digest] = data
        return entry_of(digest, len(data), data, lfs)

    def commit(
        self, repo: Repo, parent: str | None, files: Mapping[str, Entry], title: str, author: str, message: str = ""
    ) -> Commit:
        """Adds a commit to a repository without moving any reference."""
        with self.lock:
            date = self.now()
            content = {path: entry.oid for path, entry in sorted(files.items())}
            name = json.dumps([repo.type, repo.id, parent, content, title, message, author, date])
            made = Commit(hashlib.sha1(name.encode()).hexdigest(), parent, dict(files), title, message, author, date)
            repo.commits[made.id] = made
            return made

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """``lfs`` or ``regular``, by ``.gitattributes``, size, and whether the first bytes look binary."""
        entry = commit.files.get(".gitattributes")
        rules = self.blobs[entry.sha256].decode(errors="replace") if entry else ""
        patterns = [line.split()[0] for line in rules.splitlines() if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        matched = any(fnmatch.fnmatch(path, p) or fnmatch.fnmatch(name, p) for p in patterns)
        return "lfs" if matched or size >= self.regular_limit or b"\0" in sample else "regular"

    # For tests ------------------------------------------------------------------------------------------------------

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """All files of a repository at a revision, as anybody with access would see them."""
        with self.lock:
            commit = self.repos[kind, repo_id].resolve(revision)
            return {path: self.blobs[entry.sha256] for path, entry in sorted(commit.files.items())}


def entry_of(digest: str, size: int, data: bytes | None, lfs: bool) -> Entry:
    """The entry of a file; for an LFS file git's blob is its pointer and the bytes aren't needed."""
    if lfs:
        data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()
    if data is None:
        raise ValueError("the bytes of a regular file are needed to name it")
    return Entry(digest, size, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), lfs)
