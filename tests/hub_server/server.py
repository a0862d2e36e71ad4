"""The transport of the test Hub: HTTP/1.1 on 127.0.0.1, who is asking, planned trouble, and answers.

What the requests mean is in api.py. The one idea: the whole body is read before any work is done and the work is done
before the answer's first byte is sent, so that a fault can strike at exactly one of these seams.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server.faults import Fault, Plan
from hub_server.store import Refused, Store


@dataclass
class Request:
    """What an endpoint sees of a request; ``user`` is None without a token."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None
    role: str | None

    def json(self) -> Any:
        """The body as JSON; an empty body is an empty object."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refused(400, f"the body is not JSON: {error}") from error

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        """Whether a query parameter is set to something true."""
        return self.first(name).lower() in {"1", "true"}


@dataclass
class Answer:
    """An endpoint's answer; ``body`` is bytes, or anything that JSON can hold."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        """The bytes to send."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class HubServer:
    """A running test Hub.

    Args:
        store: its data; default: empty.
        port: 0 takes a free one.
        multipart_from: LFS files of at least this many bytes are asked for in parts.
        part_size: bytes of such a part.
        quota: bytes of LFS files that all repositories together may hold; None: no limit.
        page_size: entries in a page of a listing.
        xet: address of the Xet service that is announced to clients; None: no Xet. (There is no such service here.)

    Attributes:
        url: what ``HF_ENDPOINT`` must be.
        plan: planned faults, and the log of requests.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        port: int = 0,
        multipart_from: int = 5 << 20,
        part_size: int = 2 << 20,
        quota: int | None = None,
        page_size: int = 1000,
        xet: str | None = None,
    ) -> None:
        self.store = store or Store()
        self.plan = Plan()
        self.multipart_from, self.part_size = multipart_from, part_size
        self.quota, self.page_size = quota, page_size
        self.xet = xet
        self.secret = secrets.token_hex(8)
        self.parts: dict[tuple[str, int], bytes] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> HubServer:
        """Serves in a thread of this process until `stop`."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Ends the server; its data stay in `store`."""
        self._http.shutdown()
        self._http.server_close()

    def serve_forever(self) -> None:
        """Serves in this thread (for the command line)."""
        self._http.serve_forever()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def trouble(self, *faults: Fault) -> Iterator[Plan]:
        """Plans faults for the length of a block and starts the request log afresh."""
        self.plan.faults, self.plan.seen = list(faults), []
        try:
            yield self.plan
        finally:
            self.plan.faults = []

    def environment(self, home: str | os.PathLike[str], token: str | None = None) -> dict[str, str]:
        """Environment variables for a process that shall know this Hub and no other, with a fresh cache."""
        found = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",  # client 2.4 would upload through Xet without asking this server
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HOME": os.fspath(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        }
        return {**found, "HF_TOKEN": token} if token else found


# One request ----------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """The connection was broken on purpose."""


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    from hub_server.api import dispatch

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30
        disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement

        def log_message(self, format: str, *args: Any) -> None:
            pass  # the plan keeps the log

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            fault = hub.plan.next(f"{self.command} {path}")
            try:
                if fault is not None and fault.reset == "before":
                    self.break_off(fault)
                body = self.read_body(fault)
                answer = self.answer(path, body, fault)
                if fault is not None and fault.reset == "after":
                    self.break_off(fault)
                self.send(answer, fault)
            except (_Broken, ConnectionError, TimeoutError):
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def answer(self, path: str, body: bytes, fault: Fault | None) -> Answer:
            try:
                if fault is not None and fault.status is not None:
                    raise self.planned(fault)
                split = urlsplit(self.path)
                user, role = self.who()
                query = parse_qs(split.query, keep_blank_values=True)
                # Routes are matched before decoding: %2F is part of a revision, / is not.
                raw = Request(self.command, split.path, query, self.headers, body, user, role)
                return dispatch(hub, raw)
            except Refused as refused:
                return self.refusal(refused, fault)

        def planned(self, fault: Fault) -> Refused:
            if fault.then is not None:
                fault.then()
            text = fault.message.replace("{authorization}", str(self.headers.get("authorization")))
            return Refused(fault.status or 500, text)

        def refusal(self, refused: Refused, fault: Fault | None) -> Answer:
            headers = {"X-Error-Message": refused.message.replace("\n", " ")}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            if fault is not None and fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            return Answer({"error": refused.message}, refused.status, headers)

        def who(self) -> tuple[str | None, str | None]:
            scheme, _, token = (self.headers.get("authorization") or "").partition(" ")
            if not scheme:
                return None, None
            found = hub.store.tokens.get(token)
            if scheme.lower() != "bearer" or found is None:
                raise Refused(401, "Invalid credentials in Authorization header")
            return found

        def read_body(self, fault: Fault | None) -> bytes:
            if "chunked" in (self.headers.get("transfer-encoding") or "").lower():
                body = self.read_chunks(fault)
            else:
                length = int(self.headers.get("content-length") or 0)
                if fault is not None and fault.reset == "body":
                    self.rfile.read(length // 2)
                    self.break_off(fault)
                body = self.rfile.read(length)
                if len(body) < length:
                    raise _Broken
            return body

        def read_chunks(self, fault: Fault | None) -> bytes:
            found = b""
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                found += self.rfile.read(size)
                self.rfile.readline()
                if fault is not None and fault.reset == "body":
                    self.break_off(fault)
            while self.rfile.readline().strip():
                pass  # trailers
            return found

        def break_off(self, fault: Fault) -> None:
            if fault.then is not None:
                fault.then()
            # With a linger time of zero, closing sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise _Broken

        def send(self, answer: Answer, fault: Fault | None) -> None:
            content = answer.content()
            kind = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json; charset=utf-8"
            headers = {"Content-Type": kind, "X-Request-Id": secrets.token_hex(6), **answer.headers}
            headers.setdefault("Content-Length", str(len(content)))
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, re.sub(r"[^\x20-\x7e]", "?", value))
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(content) // 2 if fault is not None and fault.delay else 0
            self.wfile.write(content[:half])
            if fault is not None and fault.delay:
                self.wfile.flush()
                threading.Event().wait(fault.delay)  # not time.sleep, which tests replace to make clients hurry
            self.wfile.write(content[half:])

    return Handler
