"""As much of Qdrant's REST interface as the store uses, answered by qdrant-client's own local mode, in memory.

What it is for: the way of a request over HTTP and back: paths, JSON both ways, the header with the key. What it does
not do: search as a server does (a graph); local mode is exact.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


class QdrantServer(ThreadingHTTPServer):
    """Listens on a free port; ``points`` is what it holds, ``asked`` are method, path and key of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.points = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.asked: list[tuple[str, str, str | None]] = []
        self.key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: QdrantServer

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = self.path.partition("?")[0]
        key = self.headers.get("api-key")
        self.server.asked.append((self.command, path, key))
        if key != self.server.key:
            self._send(403, {"status": {"error": "Must provide an API key"}})
            return
        result = self._result(self.command, path.strip("/").split("/"), body)
        if isinstance(result, list):
            result = [one.model_dump(mode="json") for one in result]
        elif hasattr(result, "model_dump"):
            result = result.model_dump(mode="json")
        self._send(200, {"result": result, "status": "ok", "time": 0.0})

    def _result(self, method: str, parts: list[str], body: Any) -> Any:
        points = self.server.points
        match (method, *parts):
            case ("POST", "collections", "aliases"):
                for action in body["actions"]:
                    made = models.CreateAliasOperation.model_validate(action)
                    points.update_collection_aliases([made])
                return True
            case ("GET", "collections", name, "exists"):
                return {"exists": points.collection_exists(name)}
            case ("GET", "collections", name, "aliases"):
                return points.get_collection_aliases(name)
            case ("GET", "collections", name):
                return points.get_collection(name)
            case ("DELETE", "collections", name):
                return points.delete_collection(name)
            case ("PUT", "collections", name):
                return points.create_collection(name, models.VectorParams.model_validate(body["vectors"]))
            case ("PUT", "collections", name, "index"):
                return models.UpdateResult(operation_id=0, status="completed")
            case ("PUT", "collections", name, "points"):
                return points.upsert(name, models.Batch.model_validate(body["batch"]))
            case ("POST", "collections", name, "points", "count"):
                return points.count(name, exact=body["exact"])
            case ("POST", "collections", name, "points", "query", "batch"):
                searches = [models.QueryRequest.model_validate(one) for one in body["searches"]]
                return points.query_batch_points(name, searches)
        raise ValueError(f"{method} {parts}")

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve() -> Iterator[QdrantServer]:
    """A server while the block runs."""
    server = QdrantServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
