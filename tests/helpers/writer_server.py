"""A scripted OpenAI-compatible server: every task of the questions room, from the prompt alone, and faults on order.

The one idea: an answer is a function of the request's words and seed. So a set that was made with troubles can be
compared, byte by byte, with one that was made without. A `Fault` says what goes wrong with which request, from 0.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["429", "500", "400 schema", "401", "cut", "cut before", "page", "junk", "refusal", "length", "no usage"]


@dataclass
class Fault:
    """What goes wrong with a request; ``then`` is called at that seam (to kill the client, say)."""

    kind: Kind
    then: Callable[[], None] | None = None


@dataclass
class WriterServer:
    """A running server.

    Attributes:
        faults: number of the request -> what goes wrong with it.
        seen: bodies of all requests for a completion.
        delivered: Idempotency-Key -> how often an answer left whole.
        gate: what a streamed answer waits for behind its first word.
        refuses_schema: says 400 to every JSON schema, as older servers do.
    """

    faults: Mapping[int, Fault] = field(default_factory=dict)
    refuses_schema: bool = False
    models: tuple[str, ...] = ("scripted",)
    seen: list[dict[str, Any]] = field(default_factory=list)
    delivered: Counter[str] = field(default_factory=Counter)
    script: Callable[[str, str, int], str] | None = None
    gate: threading.Event | None = None

    def __enter__(self) -> WriterServer:
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next(self, body: dict[str, Any]) -> Fault | None:
        with self._lock:
            self.seen.append(body)
            return self.faults.get(len(self.seen) - 1)

    def answered(self, key: str) -> None:
        with self._lock:
            self.delivered[key] += 1

    def text(self, body: dict[str, Any]) -> str:
        *system, user = [message["content"] for message in body["messages"]]
        return (self.script or scripted)(system[0] if system else user, user, body.get("seed", 0))


def _handler(server: WriterServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault = server.next(body)
            kind, then = (fault.kind, fault.then) if fault else (None, None)
            form = (body.get("response_format") or {}).get("type")
            if kind in ("429", "500", "401"):
                self._send(int(kind), {"error": {"message": "not now"}}, {"retry-after": "0"} if kind == "429" else {})
            elif form == "json_schema" and (server.refuses_schema or kind == "400 schema"):
                self._send(400, {"error": {"message": "response_format of type json_schema is not supported"}})
            elif body.get("stream"):
                self._stream(server.text(body), cut=kind == "cut")
            elif kind == "page":
                self._send(200, "<html>busy</html>")
            else:
                self._complete(body, kind, then)

        def _stream(self, text: str, *, cut: bool) -> None:
            """A word a piece; cut, the connection ends behind the second without a word about it."""
            self.send_response(200)
            for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked"}.items():
                self.send_header(name, value)
            self.end_headers()
            for number, word in enumerate(re.findall(r"\S+\s*", text)):
                if number == 1 and server.gate is not None:
                    server.gate.wait(120)
                if number == 2 and cut:
                    self.close_connection = True
                    return
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                self._piece(json.dumps({"object": "chat.completion.chunk", "choices": [choice]}))
            self._piece("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def _piece(self, text: str) -> None:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _complete(self, body: dict[str, Any], kind: Kind | None, then: Callable[[], None] | None) -> None:
            text, finish, said = server.text(body), "stop", None
            if kind == "junk":
                text = text[: len(text) // 2] + "\u2026 and so on"
            elif kind == "length":
                text, finish = text[: len(text) // 2], "length"
            elif kind == "refusal":
                text, said = "", "I can't help with that."
            answer: dict[str, Any] = {
                "id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": finish,
                             "message": {"role": "assistant", "content": text, "refusal": said}}],
            }  # fmt: skip
            if kind != "no usage":
                read = sum(len(message["content"].split()) for message in body["messages"])
                written = len(text.split())
                answer["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            data = json.dumps(answer).encode()
            if kind == "cut before":
                if then:
                    then()
                self.close_connection = True
                return
            if kind == "cut":
                self._head(200, len(data), {})
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if then:
                    then()
                self.close_connection = True
                return
            self._send(200, data)
            server.answered(self.headers.get("idempotency-key", ""))
            if then:
                then()

        def _head(self, status: int, length: int, headers: Mapping[str, str], kind: str = "application/json") -> None:
            self.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
            page = isinstance(body, str)
            data = body if isinstance(body, bytes) else body.encode() if page else json.dumps(body).encode()
            self._head(status, len(data), headers or {}, "text/html" if page else "application/json")
            self.wfile.write(data)

    return Handler


# The script -----------------------------------------------------------------------------------------------------------


def scripted(system: str, user: str, seed: int) -> str:
    """An honest answer to any request of the room: dull, but true to the passage."""
    told = user.partition("Passage:\n")[2]
    end = re.search(r"\n\n(?:Write \d|Questions:|Entities:|The way:|Name \d)", told)
    passage = told[: end.start()] if end else told.rpartition("\n\n")[0]
    tasks: dict[str, Callable[[str, str, int], Any]] = {
        "You write multiple choice": _questions,
        "You order questions": _order,
        "You are shown a passage": _answer_with,
        "You are asked a question": lambda *_: {"right": ["A"]},
        "You paraphrase": _paraphrases,
        "You list the entities": lambda p, *_: {"entities": list(dict.fromkeys(re.findall(r"\b[A-Z][a-z]+\b", p)))},
        "You write questions with their answers": _pairs,
        "You plan how to learn": lambda *_: {
            "strategies": ["Write a timeline.", "Explain it to a child.", "Dialogue."]
        },
        "You explain, as an analyst": lambda p, u, s: f"{u.rpartition('Entities: ')[2]}: {p}",
        "You study a passage": lambda p, u, s: f"{u.rpartition('The way: ')[2]} {p}",
    }
    made = next(make for start, make in tasks.items() if system.startswith(start))(passage, user, seed)
    return made if isinstance(made, str) else json.dumps(made)


def _sentences(passage: str) -> list[str]:
    return re.findall(r"[^.!?\n]+[.!?]?", passage)


def gaps(passage: str) -> list[tuple[str, str]]:
    """(sentence, a word of it to ask for): each word once in a passage, longer ones first within a sentence."""
    words = Counter(re.findall(r"[^\W_]+", passage.lower()))
    found = []
    for sentence in _sentences(passage):
        once = [w for w in re.findall(r"\b[^\W_]{4,}\b", sentence) if words[w.lower()] == 1]
        if once and len(sentence.split()) > 4:
            found.append((sentence.strip(), max(once, key=lambda w: (len(w), w))))
    return found


def _questions(passage: str, user: str, seed: int) -> Any:
    count = int(re.findall(r"Write (\d+) question", user)[-1])
    had = user.rpartition("There are these already")[2] if "There are these already" in user else ""
    rng = random.Random(f"{passage}{seed}")
    free = [(s, w) for s, w in gaps(passage) if s.replace(w, "___") not in had]
    rng.shuffle(free)
    made = []
    for sentence, word in free[:count]:
        wrong = [(word + end)[: len(word) + 2] for end in ("ia", "o", "um")]
        options = [{"text": word, "right": True}, *({"text": w, "right": False} for w in wrong)]
        asked = f"Which word is left out: {sentence.replace(word, '___')}"
        made.append({"question": asked, "options": options, "evidence": sentence})
    return {"questions": made}


def _order(passage: str, user: str, seed: int) -> Any:
    """Longer questions first."""
    listed = re.findall(r"(?m)^(\d+)\. (.*)$", user.rpartition("Questions:\n")[2])
    return {"order": [int(n) for n, text in sorted(listed, key=lambda one: (-len(one[1]), int(one[0])))]}


def _answer_with(passage: str, user: str, seed: int) -> Any:
    options = re.findall(r"(?m)^([A-D])\. (.*)$", user)
    return {"right": [letter for letter, text in options if re.search(rf"\b{re.escape(text)}\b", passage)]}


def _paraphrases(passage: str, user: str, seed: int) -> Any:
    """The sentences in another order each time, with a few words before them."""
    count = int(re.findall(r"Write (\d+) paraphrase", user)[-1])
    made = []
    for number in range(count):
        rng = random.Random(f"{passage}{seed}{number}")
        sentences = [s.strip() for s in _sentences(passage)]
        rng.shuffle(sentences)
        made.append(" ".join(f"{rng.choice(_OPENINGS)} {s}" for s in sentences))
    return {"paraphrases": made}


_OPENINGS = ("it is told that", "we hear this:", "so the papers said:", "what is known is this:", "and then:", "also,")


def _pairs(passage: str, user: str, seed: int) -> Any:
    count = int(re.findall(r"Write (\d+) questions", user)[-1])
    rng = random.Random(f"{passage}{seed}")
    chosen = [rng.choice(_sentences(passage)).strip() for _ in range(count)]
    return {"pairs": [{"question": f"What about {s.split()[-1]}?", "answer": s} for s in chosen]}
