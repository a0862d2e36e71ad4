"""What the test Hub's requests mean: one function an endpoint, found by its route.

It answers as huggingface_hub 2.4 (and transformers, peft, datasets on top of it) expects: paths, JSON fields and
headers are those that the client sends and reads. Where the real Hub is stricter or richer, README.md says so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlencode

import yaml

from hub_server import validation
from hub_server.store import Commit, Discussion, Entry, Refused, Repo, Store, entry_of

if TYPE_CHECKING:
    from hub_server.server import Answer, HubServer, Request

_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []

_ID = r"(?P<id>[^/]+/[^/]+?)"
_API = rf"/api/(?P<kinds>models|datasets|spaces)/{_ID}"
_WEB = rf"/(?:(?P<kinds>datasets|spaces)/)?{_ID}"


def route(methods: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function for some methods and a path; it gets the hub, the request and the named groups, decoded."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return enter


def dispatch(hub: HubServer, request: Request) -> Answer:
    """Finds the endpoint of a request and lets it answer, one request at a time."""
    from hub_server.server import Answer

    for method, pattern, function in _ROUTES:
        match = pattern.fullmatch(request.path)
        if method != request.method or match is None:
            continue
        groups = {name: unquote(value) if value is not None else None for name, value in match.groupdict().items()}
        if "kinds" in groups:
            groups["kind"] = _KINDS[groups.pop("kinds") or "models"]
        with hub.store.lock:
            found = function(hub, request, **groups)
        return found if isinstance(found, Answer) else Answer(found)
    raise Refused(404, f"Cannot {request.method} {request.path}")


def _signed_in(request: Request) -> str:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    return request.user


def _writer(hub: HubServer, request: Request, repo: Repo) -> str:
    user = _signed_in(request)
    if request.role != "write" or not hub.store.may_write(repo.id, user):
        raise Refused(403, "Forbidden: you don't have write access to this repository with this token")
    return user


# Accounts and repositories --------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Any:
    """Name, organisations and the token's role."""
    user = _signed_in(request)
    orgs = [{"type": "org", "name": name} for name, members in hub.store.orgs.items() if user in members]
    token = {"displayName": "test", "role": request.role}
    return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": {"accessToken": token}}


@route("POST", "/api/repos/create")
def create_repo(hub: HubServer, request: Request) -> Any:
    """Makes a repository; 409, with its address, if it is there."""
    from hub_server.server import Answer

    user, body = _signed_in(request), request.json()
    if request.role != "write":
        raise Refused(403, "Forbidden: this token can't create repositories")
    kind, repo_id = body.get("type", "model"), f"{body.get('organization') or user}/{body['name']}"
    url = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    if kind == "space" and body.get("sdk") not in ("gradio", "docker", "static"):
        raise Refused(400, "A Space needs its sdk: gradio, docker or static")
    if (kind, repo_id) in hub.store.repos:
        return Answer({"error": f"You already created this {kind} repo: {repo_id}", "url": url}, 409)
    hub.store.create(kind, repo_id, user, body.get("visibility") == "private" or bool(body.get("private")))
    return {"url": url, "name": repo_id, "id": repo_id}


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: HubServer, request: Request) -> Any:
    """Forgets a repository."""
    user, body = _signed_in(request), request.json()
    key = (body.get("type", "model"), f"{body.get('organization') or user}/{body['name']}")
    _writer(hub, request, hub.store.find(*key, user))
    del hub.store.repos[key]
    return {}


@route("POST", "/api/repos/move")
def move_repo(hub: HubServer, request: Request) -> Any:
    """Renames a repository."""
    body = request.json()
    repo = hub.store.find(body.get("type", "model"), body["fromRepo"], request.user)
    _writer(hub, request, repo)
    if (repo.type, body["toRepo"]) in hub.store.repos:
        raise Refused(409, "the new name is taken")
    del hub.store.repos[repo.type, repo.id]
    repo.id = body["toRepo"]
    hub.store.repos[repo.type, repo.id] = repo
    return {}


@route("PUT", rf"{_API}/settings")
def settings(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Visibility and gating."""
    repo, body = hub.store.find(kind, id, request.user), request.json()
    _writer(hub, request, repo)
    repo.private = body.get("visibility", "private" if repo.private else "public") == "private"
    repo.gated = body.get("gated", repo.gated)
    return {"private": repo.private, "gated": repo.gated}


@route("GET", rf"{_API}/auth-check(/.*)?")
def auth_check(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Whether the user may read."""
    hub.store.find(kind, id, request.user)
    return {}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Any:
    """Checks a card before it is committed."""
    from hub_server.server import Answer

    body = request.json()
    errors, warnings = validation.check_card(body.get("content", ""), body.get("repoType", "model"))
    found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    if errors:
        return Answer({**found, "error": "; ".join(errors)}, 400)
    return found


# Reading --------------------------------------------------------------------------------------------------------------


@route("GET", r"/api/(?P<kinds>models|datasets)")
def list_repos(hub: HubServer, request: Request, kind: str) -> Any:
    """Repositories by author, words of the name, and tags."""
    found = []
    for repo in hub.store.repos.values():
        if repo.type != kind or (repo.private and not hub.store.may_write(repo.id, request.user)):
            continue
        info = _info(hub.store, repo, repo.resolve("main"))
        wanted = request.query.get("filter", [])
        matches = request.first("search").lower() in repo.id.lower() and set(wanted) <= set(info["tags"])
        if matches and request.first("author", repo.id.split("/")[0]) == repo.id.split("/")[0]:
            found.append(info)
    return _page(hub, request, found)


@route("GET", _API)
@route("GET", rf"{_API}/revision/(?P<revision>[^/]+)")
def repo_info(hub: HubServer, request: Request, kind: str, id: str, revision: str = "main") -> Any:
    """A repository at a revision: files, card, tags; ``expand=evalResults`` adds results."""
    repo = hub.store.find(kind, id, request.user)
    commit = repo.resolve(revision)
    info = _info(hub.store, repo, commit, blobs=request.flag("blobs"))
    if "evalResults" in request.query.get("expand", []):
        info["evalResults"] = [
            {"filename": path, "data": entry} for path, entry in _eval_results(hub.store, repo, commit)
        ]
    return info


def _info(store: Store, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    card = validation.card_data(store.blobs[readme.sha256].decode(errors="replace")) if readme else {}
    siblings = [
        {"rfilename": p, **({"size": e.size, "blobId": e.oid, **_lfs_fields(e)} if blobs else {})}
        for p, e in sorted(commit.files.items())
    ]
    base = card.get("base_model")
    tags = [
        *card.get("tags", []),
        *(f"base_model:{b}" for b in (base if isinstance(base, list) else [base] if base else [])),
    ]
    return {
        "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24], "id": repo.id, "author": repo.id.split("/")[0],
        "sha": commit.id, "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0,
        "createdAt": repo.created, "lastModified": commit.date, "tags": tags, "siblings": siblings, "cardData": card,
        **({"modelId": repo.id, "library_name": card.get("library_name")} if repo.type == "model" else {}),
    }  # fmt: skip


def _lfs_fields(entry: Entry) -> dict[str, Any]:
    return (
        {"lfs": {"oid": entry.sha256, "sha256": entry.sha256, "size": entry.size, "pointerSize": 130}}
        if entry.lfs
        else {}
    )


def _file(path: str, entry: Entry) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": entry.size, "oid": entry.oid, **_lfs_fields(entry)}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _page(hub: HubServer, request: Request, found: list[Any]) -> Any:
    from hub_server.server import Answer

    start = int(request.first("cursor", "0"))
    end = start + hub.page_size
    if end >= len(found):
        return found[start:]
    query = urlencode({**{k: v[0] for k, v in request.query.items()}, "cursor": end})
    return Answer(found[start:end], headers={"Link": f'<{hub.url}{request.path}?{query}>; rel="next"'})


@route("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?")
def tree(hub: HubServer, request: Request, kind: str, id: str, revision: str, path: str | None) -> Any:
    """Files and folders, of one level or all, in pages."""
    commit = hub.store.find(kind, id, request.user).resolve(revision)
    prefix = f"{path.strip('/')}/" if path else ""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in sorted(commit.files.items()):
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if depth == 1 or request.flag("recursive"):
                found.setdefault(folder, _folder(folder))
        if len(parts) == 1 or request.flag("recursive"):
            found[name] = _file(name, entry)
    if prefix and not found:
        raise Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
    return _page(hub, request, list(found.values()))


@route("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: HubServer, request: Request, kind: str, id: str, revision: str) -> Any:
    """What some paths are; those that don't exist are left out."""
    commit = hub.store.find(kind, id, request.user).resolve(revision)
    if "json" in (request.headers.get("content-type") or ""):
        paths = request.json().get("paths", [])
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    found = []
    for path in paths:
        if path in commit.files:
            found.append(_file(path, commit.files[path]))
        elif any(name.startswith(f"{path.rstrip('/')}/") for name in commit.files):
            found.append(_folder(path.rstrip("/")))
    return found


@route("GET", rf"{_API}/commits/(?P<revision>[^/]+)")
def commits(hub: HubServer, request: Request, kind: str, id: str, revision: str) -> Any:
    """The history of a revision."""
    repo = hub.store.find(kind, id, request.user)
    return [
        {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in repo.history(repo.resolve(revision))
    ]


@route("GET HEAD", rf"{_WEB}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: HubServer, request: Request, kind: str, id: str, revision: str, path: str) -> Any:
    """A file's bytes, whole or in part."""
    from hub_server.server import Answer

    repo = hub.store.find(kind, id, request.user)
    if repo.gated and not hub.store.may_write(repo.id, request.user):
        raise Refused(403, "Access to this repo is restricted", "GatedRepo")
    commit = repo.resolve(revision)
    entry = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if entry is None:
        missing = {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Answer({"error": "Entry not found"}, 404, missing)
    etag = entry.sha256 if entry.lfs else entry.oid
    headers["ETag"] = f'"{etag}"'
    if entry.lfs:
        headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(entry.size)}
    data = hub.store.blobs[entry.sha256]
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range") or "")
    if wanted is None or not any(wanted.groups()):
        return Answer(data, headers=headers)
    first, last = _range(wanted.group(1), wanted.group(2), entry.size)
    if first >= entry.size:
        return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{entry.size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{entry.size}"
    return Answer(data[first : last + 1], 206, headers)


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(size - int(last), 0), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


# Writing --------------------------------------------------------------------------------------------------------------


@route("GET", rf"{_API}/xet-write-token/(?P<revision>[^/]+)")
def xet_write_token(hub: HubServer, request: Request, kind: str, id: str, revision: str) -> Any:
    """Where large files go through Xet: a service that this server names but doesn't have."""
    from hub_server.server import Answer

    _writer(hub, request, hub.store.find(kind, id, request.user))
    if hub.xet is None:
        raise Refused(404, "this Hub has no Xet")
    found = {"casUrl": hub.xet, "exp": int(time.time()) + 900, "accessToken": "xet-token"}
    headers = {"Cas-Url": found["casUrl"], "Token-Expiration": str(found["exp"]), "Access-Token": found["accessToken"]}
    return Answer(found, headers={f"X-Xet-{name}": value for name, value in headers.items()})


@route("POST", rf"{_API}/preupload/(?P<revision>[^/]+)")
def preupload(hub: HubServer, request: Request, kind: str, id: str, revision: str) -> Any:
    """How each file must be uploaded, and what is there under its name."""
    repo = hub.store.find(kind, id, request.user)
    _signed_in(request)
    commit = repo.resolve(revision)
    files = []
    for file in request.json()["files"]:
        _check_path(file["path"])
        old = commit.files.get(file["path"])
        mode = hub.store.upload_mode(commit, file["path"], file["size"], base64.b64decode(file["sample"]))
        oid = None if old is None else old.sha256 if old.lfs else old.oid
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": files, "commitOid": commit.id}


def _check_path(path: str) -> None:
    parts = path.split("/")
    if path.startswith("/") or not path or any(p in ("", ".", "..", ".git") for p in parts) or "\\" in path:
        raise Refused(400, f"Invalid path in the repository: {path!r}")


@route("POST", rf"{_WEB}\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Where each large file must be sent; nothing for those that this repository has."""
    repo = hub.store.find(kind, id, request.user)
    _signed_in(request)
    objects = [_lfs_object(hub, repo, one["oid"], one["size"]) for one in request.json()["objects"]]
    return {"transfer": "basic", "objects": objects}


def _lfs_object(hub: HubServer, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        raise Refused(422, "Invalid oid")
    if oid in repo.lfs:
        return {"oid": oid, "size": size}
    used = sum(len(hub.store.blobs[o]) for r in hub.store.repos.values() for o in r.lfs)
    if hub.quota is not None and used + size > hub.quota:
        return {"oid": oid, "size": size, "error": {"code": 403, "message": "Storage quota exceeded: buy more storage"}}
    place = f"{hub.url}/lfs/{repo.type}s/{repo.id}/{oid}"
    verify = {"href": f"{hub.url}/lfs/{repo.type}s/{repo.id}/{oid}/verify", "header": {}}
    if size < hub.multipart_from:
        upload: dict[str, Any] = {"href": f"{place}?sig={_sign(hub, place)}"}
    else:
        parts = range(1, ceil(size / hub.part_size) + 1)
        urls = {f"{n:05d}": f"{place}/part/{n}?sig={_sign(hub, f'{place}/part/{n}')}" for n in parts}
        done = f"{place}/complete"
        upload = {"href": f"{done}?sig={_sign(hub, done)}", "header": {"chunk_size": str(hub.part_size), **urls}}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _sign(hub: HubServer, url: str) -> str:
    return hmac.new(hub.secret.encode(), url.encode(), "sha256").hexdigest()[:32]


_LFS = rf"/lfs/(?P<kinds>models|datasets|spaces)/{_ID}/(?P<oid>[0-9a-f]{{64}})"


def _check_signature(hub: HubServer, request: Request) -> None:
    if not hmac.compare_digest(request.first("sig"), _sign(hub, hub.url + request.path)):
        raise Refused(403, "SignatureDoesNotMatch")


def _keep_lfs(hub: HubServer, repo: Repo, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "the content doesn't have this sha256")
    hub.store.blobs[oid] = data
    repo.lfs.add(oid)


@route("PUT", _LFS)
def lfs_put(hub: HubServer, request: Request, kind: str, id: str, oid: str) -> Any:
    """A large file in one piece; signed, so without a token."""
    _check_signature(hub, request)
    _keep_lfs(hub, hub.store.repos[kind, id], oid, request.body)
    return b""


@route("PUT", rf"{_LFS}/part/(?P<number>\d+)")
def lfs_put_part(hub: HubServer, request: Request, kind: str, id: str, oid: str, number: str) -> Any:
    """A part of a large file."""
    from hub_server.server import Answer

    _check_signature(hub, request)
    hub.parts[oid, int(number)] = request.body
    return Answer(b"", headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", rf"{_LFS}/complete")
def lfs_complete(hub: HubServer, request: Request, kind: str, id: str, oid: str) -> Any:
    """Puts the parts together."""
    _check_signature(hub, request)
    numbers = [part["partNumber"] for part in request.json()["parts"]]
    if any((oid, n) not in hub.parts for n in numbers):
        raise Refused(400, "a part is missing")
    _keep_lfs(hub, hub.store.repos[kind, id], oid, b"".join(hub.parts.pop((oid, n)) for n in sorted(numbers)))
    return {"success": True}


@route("POST", rf"{_LFS}/verify")
def lfs_verify(hub: HubServer, request: Request, kind: str, id: str, oid: str) -> Any:
    """Whether a large file arrived."""
    _signed_in(request)
    if oid not in hub.store.repos[kind, id].lfs:
        raise Refused(404, "the file was not uploaded")
    return {}


@route("POST", rf"{_API}/commit/(?P<revision>[^/]+)")
def commit(hub: HubServer, request: Request, kind: str, id: str, revision: str) -> Any:
    """All changes at once, on a branch, on a pull request, or (``create_pr``) as a new pull request."""
    repo = hub.store.find(kind, id, request.user)
    head, header = repo.resolve(revision), {}
    opens = request.flag("create_pr")
    user = _signed_in(request) if opens else _may_commit(hub, request, repo, revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    files = dict(head.files)
    for line in lines:
        if line["key"] == "header":
            header = line["value"]
        else:
            _change(hub.store, repo, files, line["key"], line["value"])
    expected = header.get("parentCommit")
    if expected and not head.id.startswith(expected):
        if not opens:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        head = repo.resolve(expected)
    _check_files(hub.store, repo, head, files)
    title = header.get("summary", "")
    made = hub.store.commit(repo, head.id, files, title, user, header.get("description", ""))
    answer = {"success": True, "commitOid": made.id, "commitUrl": f"{_home(hub, repo)}/commit/{made.id}"}
    if opens:
        pull = _open(hub.store, repo, title, header.get("description", ""), user, repo.ref(revision), made.id)
        _add_event(hub.store, pull, "commit", user, {"subject": title, "oid": made.id})
        return {**answer, "pullRequestUrl": f"{_home(hub, repo)}/discussions/{pull.num}"}
    repo.refs[repo.ref(revision)] = made.id
    return answer


def _home(hub: HubServer, repo: Repo) -> str:
    return f"{hub.url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"


def _may_commit(hub: HubServer, request: Request, repo: Repo, revision: str) -> str:
    number = re.fullmatch(r"refs/pr/(\d+)", revision)
    user = _signed_in(request)
    if number and _discussion(repo, number.group(1)).author == user and request.role == "write":
        return user
    return _writer(hub, request, repo)


def _change(store: Store, repo: Repo, files: dict[str, Entry], key: str, value: Mapping[str, Any]) -> None:
    path = value["path"]
    _check_path(path.rstrip("/") if key == "deletedFolder" else path)
    if key == "file":
        files[path] = store.put(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs:
            raise Refused(400, f"the LFS file of {path} was not uploaded")
        files[path] = entry_of(value["oid"], len(store.blobs[value["oid"]]), None, lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise Refused(400, f"unknown operation {key!r}")


def _check_files(store: Store, repo: Repo, head: Commit, files: Mapping[str, Entry]) -> None:
    """The Hub's checks of the files that a commit changes."""
    errors: list[str] = []
    for path, entry in files.items():
        if head.files.get(path) == entry:
            continue
        text = store.blobs[entry.sha256].decode(errors="replace")
        if path == "README.md":
            errors += [f"{path}: {e}" for e in validation.check_card(text, repo.type)[0]]
        elif re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path):
            errors += [f"{path}: {e}" for e in validation.check_eval_results(text)]
        elif path == "eval.yaml" and repo.type == "dataset":
            errors += [f"{path}: {e}" for e in validation.check_eval_yaml(text)]
    if errors:
        raise Refused(400, "; ".join(errors))


# References, pull requests --------------------------------------------------------------------------------------------


@route("GET", rf"{_API}/refs")
def refs(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Branches, tags and pull requests."""
    repo = hub.store.find(kind, id, request.user)

    def below(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": target}
            for ref, target in sorted(repo.refs.items())
            if ref.startswith(prefix)
        ]

    found = {"branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": []}
    return {**found, "pullRequests": below("refs/pr/")} if request.flag("include_prs") else found


@route("POST DELETE", rf"{_API}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def reference(hub: HubServer, request: Request, kind: str, id: str, what: str, name: str) -> Any:
    """Makes or removes a branch or tag."""
    repo = hub.store.find(kind, id, request.user)
    _writer(hub, request, repo)
    if request.method == "DELETE":
        ref = f"refs/{'heads' if what == 'branch' else 'tags'}/{name}"
        if ref == "refs/heads/main" or ref not in repo.refs:
            raise Refused(403 if ref == "refs/heads/main" else 404, f"{ref} can't be removed")
        del repo.refs[ref]
        return {}
    body = request.json()
    # A tag's path names what it tags, a branch's the branch.
    tag = body.get("tag", name)
    ref, start = (
        (f"refs/heads/{name}", body.get("startingPoint", "main")) if what == "branch" else (f"refs/tags/{tag}", name)
    )
    if ref in repo.refs:
        raise Refused(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.resolve(start).id
    return {}


def _open(store: Store, repo: Repo, title: str, text: str, user: str, base: str | None, head: str | None) -> Discussion:
    pull = Discussion(len(repo.discussions) + 1, title, user, head is not None, store.now(), base=base or "")
    pull.status = "draft" if head is not None else "open"
    repo.discussions.append(pull)
    _add_event(store, pull, "comment", user, {"edited": False, "hidden": False, "latest": {"raw": text}})
    if head is not None:
        repo.refs[f"refs/pr/{pull.num}"] = head
    return pull


def _add_event(store: Store, of: Discussion, kind: str, user: str, data: dict[str, Any]) -> dict[str, Any]:
    event = {
        "id": f"{of.num:08d}{len(of.events):04d}",
        "type": kind,
        "createdAt": store.now(),
        "author": {"name": user},
    }
    of.events.append({**event, "data": data})
    return of.events[-1]


def _discussion(repo: Repo, num: str) -> Discussion:
    if not 1 <= int(num) <= len(repo.discussions):
        raise Refused(404, f"there is no discussion {num}")
    return repo.discussions[int(num) - 1]


def _outline(repo: Repo, one: Discussion) -> dict[str, Any]:
    return {
        "title": one.title, "num": one.num, "author": {"name": one.author}, "createdAt": one.date, "status": one.status,
        "repo": {"name": repo.id, "type": repo.type}, "isPullRequest": one.is_pull_request,
    }  # fmt: skip


@route("GET", rf"{_API}/discussions")
def discussions(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Discussions and pull requests, filtered as the client can ask."""
    repo = hub.store.find(kind, id, request.user)
    wanted, status, author = request.first("type", "all"), request.first("status", "all"), request.first("author")
    found = [
        _outline(repo, one)
        for one in reversed(repo.discussions)
        if (wanted == "all" or one.is_pull_request == (wanted == "pull_request"))
        and (status == "all" or (one.status in ("open", "draft")) == (status == "open"))
        and author in ("", one.author)
    ]
    start = int(request.first("p", "0")) * hub.page_size
    return {"discussions": found[start : start + hub.page_size], "count": len(found), "start": start}


@route("POST", rf"{_API}/discussions")
def open_discussion(hub: HubServer, request: Request, kind: str, id: str) -> Any:
    """Opens a discussion, or an empty pull request against main."""
    repo, body = hub.store.find(kind, id, request.user), request.json()
    head = repo.resolve("main").id if body.get("pullRequest") else None
    made = _open(hub.store, repo, body["title"], body["description"], _signed_in(request), "refs/heads/main", head)
    return {"num": made.num}


@route("GET", rf"{_API}/discussions/(?P<num>\d+)")
def discussion(hub: HubServer, request: Request, kind: str, id: str, num: str) -> Any:
    """One discussion with its events."""
    repo = hub.store.find(kind, id, request.user)
    one = _discussion(repo, num)
    found = {**_outline(repo, one), "events": one.events, "diff": None}
    if one.is_pull_request:
        found["changes"] = {"base": one.base, "mergeCommitId": one.merge_commit}
        found["filesWithConflicts"] = _merged(repo, one)[1]
    return found


@route("POST", rf"{_API}/discussions/(?P<num>\d+)/(?P<what>comment|status|title|merge)")
def change_discussion(hub: HubServer, request: Request, kind: str, id: str, num: str, what: str) -> Any:
    """Comments, opens, closes, renames or merges."""
    repo, body = hub.store.find(kind, id, request.user), request.json()
    one, user = _discussion(repo, num), _signed_in(request)
    if what == "comment":
        text = {"edited": False, "hidden": False, "latest": {"raw": body["comment"]}}
        return {"newMessage": _add_event(hub.store, one, "comment", user, text)}
    if user != one.author or what == "merge":
        _writer(hub, request, repo)
    if what == "title":
        old, one.title = one.title, body["title"]
        return {"newTitle": _add_event(hub.store, one, "title-change", user, {"from": old, "to": one.title})}
    if what == "status":
        one.status = body["status"]
        return {"newStatus": _add_event(hub.store, one, "status-change", user, {"status": one.status})}
    files, conflicts = _merged(repo, one)
    if conflicts or one.status not in ("open", "draft"):
        raise Refused(409, f"this pull request can't be merged (status {one.status}, conflicts: {conflicts})")
    made = hub.store.commit(repo, repo.refs[one.base], files, f"{one.title} (#{one.num})", user)
    repo.refs[one.base] = one.merge_commit = made.id
    one.status = "merged"
    return {}


def _merged(repo: Repo, pull: Discussion) -> tuple[dict[str, Entry], list[str]]:
    """The files after merging a pull request, and the paths that both sides changed."""
    head, target = repo.commits[repo.refs[f"refs/pr/{pull.num}"]], repo.commits[repo.refs[pull.base]]
    known = {c.id for c in repo.history(target)}
    common = next((c for c in repo.history(head) if c.id in known), target)
    files, conflicts = dict(target.files), []
    for path in {*common.files, *head.files}:
        mine, old, theirs = head.files.get(path), common.files.get(path), target.files.get(path)
        if mine in (old, theirs):
            continue
        if theirs != old:
            conflicts.append(path)
        elif mine is None:
            del files[path]
        else:
            files[path] = mine
    return files, sorted(conflicts)


# Benchmarks -----------------------------------------------------------------------------------------------------------


def _eval_results(store: Store, repo: Repo, commit: Commit) -> Iterable[tuple[str, dict[str, Any]]]:
    for path, entry in sorted(commit.files.items()):
        if re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path):
            for result in yaml.safe_load(store.blobs[entry.sha256]):
                yield path, result


@route("GET", r"/api/datasets/(?P<id>[^/]+/[^/]+)/leaderboard")
def leaderboard(hub: HubServer, request: Request, id: str) -> Any:
    """Results of all models on a benchmark; those that declare a ``base_model`` only with ``base_model=false``."""
    benchmark = hub.store.find("dataset", id, request.user)
    if "eval.yaml" not in benchmark.resolve("main").files:
        raise Refused(404, "this dataset has no leaderboard")
    found = []
    for repo in [r for r in hub.store.repos.values() if r.type == "model" and not r.private]:
        commit = repo.resolve("main")
        derived = "base_model" in _info(hub.store, repo, commit)["cardData"]
        if derived and request.first("base_model").lower() != "false":
            continue
        for path, result in _eval_results(hub.store, repo, commit):
            if result["dataset"]["id"] == id:
                author = {"name": repo.id.split("/")[0], "type": "user", "fullname": repo.id.split("/")[0]}
                found.append({"modelId": repo.id, "filename": path, "verified": False, "author": author} | {
                    key: result.get(key) for key in ("value", "source", "notes")})  # fmt: skip
    found.sort(key=lambda entry: -entry["value"])
    return [{"rank": rank, **entry} for rank, entry in enumerate(found, start=1)]
