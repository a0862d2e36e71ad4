"""Who is asked, and how: any OpenAI-compatible endpoint, or a model on this machine, behind one verb.

What it is for: `open_writer` turns a word (``https://…/v1``, ``hf:MODEL``) into a `Writer`, whose `ask` takes a
`Request` and gives a `Reply`, or with `stream` the answer's text while it is written. What it does not do: it keeps
nothing (ledger.py does) and judges no answer (checks.py does).

The one idea: servers differ in what they take, so a request goes out in the richest form (a JSON schema, a seed, a
temperature) and in a plainer one each time a server says that it doesn't know a part. What may pass by itself (rate
limits, server errors, cut connections) is waited out, and counted.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from lm_eval_kinject.errors import ArgumentError, ModelError

__all__ = ["Endpoint", "Finish", "LocalModel", "Reply", "Request", "Writer", "open_writer", "tokens_in"]

Finish = Literal["stop", "length", "refusal"]

TRIES = 8
"""How often a request is sent before its error stands; with the waits below, about four minutes."""
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is reported instead of waited for."""
TIMEOUT = 300.0
"""Seconds for one answer."""

_PASSING = frozenset({408, 409, 425, 429})
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a writer.

    Attributes:
        system: what the writer is and must keep to.
        user: the task itself.
        schema: JSON schema of the answer; None: free text.
        temperature: of sampling; 0: the likeliest answer.
        seed: of sampling, where the writer takes one; another seed is another request in any case.
        most_tokens: of the answer.
    """

    system: str
    user: str
    schema: Mapping[str, Any] | None = None
    temperature: float = 0.7
    seed: int = 0
    most_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what it took.

    Attributes:
        text: what was written; of a refusal what was said instead.
        finish: ``stop``, ``length`` (cut at ``most_tokens``) or ``refusal`` (the server's own word for it).
        prompt_tokens: read.
        completion_tokens: written, hidden reasoning among them.
        metered: whether the writer counted both; otherwise they are estimates (`tokens_in`).
    """

    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    metered: bool


class Writer(Protocol):
    """Whoever answers requests. ``faults`` counts what went wrong on the way and was tried again."""

    name: str
    concurrency: int
    faults: Counter[str]

    def ask(self, request: Request) -> Reply:
        """The answer.

        Raises:
            ModelError: none can be had; says what to do.
        """


def tokens_in(text: str) -> int:
    """A rough count for texts that nobody has counted: four characters a token, rounded up."""
    return -(-len(text) // _CHARACTERS_A_TOKEN)


def open_writer(spec: str, *, model: str | None = None, concurrency: int = 8) -> Writer:
    """The writer that a word names.

    Args:
        spec: an endpoint's address (``https://api.openai.com/v1``, ``http://localhost:8000/v1``), or ``hf:MODEL`` for
            a transformers model, a Hub id or a folder.
        model: the endpoint's name of the model; default: the only one that it lists.
        concurrency: requests at a time (an endpoint's).

    Raises:
        ArgumentError: neither of the two, or an argument that means nothing for it.
        ModelError: it can't be reached or loaded.
    """
    if concurrency < 1:
        raise ArgumentError(f"concurrency {concurrency}: take 1 or more", "kinject questions")
    if spec.startswith(("http://", "https://")):
        return Endpoint(spec, model=model, concurrency=concurrency)
    if spec.startswith("hf:") and len(spec) > 3:
        if model is not None:
            raise ArgumentError(
                f"--model {model} is for an endpoint; hf:MODEL names its model itself", "kinject questions"
            )
        return LocalModel(spec[3:])
    raise ArgumentError(
        f"--writer {spec!r} is neither an endpoint's address (https://api.openai.com/v1, http://localhost:8000/v1 for "
        "vLLM, http://localhost:11434/v1 for Ollama) nor hf:MODEL for a transformers model on this machine",
        "kinject questions",
    )


# An endpoint ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """In which form requests go out: the parts that a server has refused are left out or named otherwise."""

    answer: Literal["json_schema", "json_object", "text"] = "json_schema"
    most_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    without: frozenset[str] = frozenset()

    def arguments(self, request: Request) -> dict[str, Any]:
        """What the client's ``create`` takes."""
        system, user = request.system, request.user
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        if "system" in self.without:
            messages = [{"role": "user", "content": f"{system}\n\n{user}"}]
        found: dict[str, Any] = {
            "messages": messages,
            "temperature": request.temperature,
            "seed": request.seed,
            self.most_tokens: request.most_tokens,
        }
        if request.schema is not None and self.answer == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": dict(request.schema)}
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and self.answer == "json_object":
            found["response_format"] = {"type": "json_object"}
        return {key: value for key, value in found.items() if key not in self.without}

    def plainer(self, said: str, sent: Mapping[str, Any]) -> _Form | None:
        """A form without what a server's refusal speaks of; None: there is nothing that could be left out."""
        said = said.lower()
        if "max_tokens" in said and self.most_tokens == "max_tokens":
            return replace(self, most_tokens="max_completion_tokens")
        for part in ("temperature", "seed"):
            if part in said and part in sent:
                return replace(self, without=self.without | {part})
        if "system" in said and "role" in said and "system" not in self.without:
            return replace(self, without=self.without | {"system"})
        if "response_format" not in sent:
            return None
        return replace(self, answer="json_object" if self.answer == "json_schema" else "text")


class _PassingError(Exception):
    """What may succeed the next time; ``wait``: seconds that the server asks for, if it says so."""

    def __init__(self, kind: str, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.wait = kind, wait


@dataclass
class Endpoint:
    """A server that speaks OpenAI's chat completions: hosted ones, vLLM, Ollama, llama.cpp.

    The key is found in ``OPENAI_API_KEY``; servers of one's own need none. Each request carries its fingerprint as
    ``Idempotency-Key``, so that a server that honours it doesn't charge again for an answer that got lost.

    Attributes:
        url: where ``/chat/completions`` lies below.
        model: the server's name of the model; None: the only one that it lists.
        concurrency: requests at a time.
        first_wait: seconds before the second try; later waits double.
        tries: how often a request is sent before its error stands.
    """

    url: str
    model: str | None = None
    concurrency: int = 8
    first_wait: float = 1.0
    tries: int = TRIES
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        try:
            import openai
            import tenacity  # noqa: F401 - here, so that its absence is said before anything is asked
        except ImportError as problem:
            raise ModelError(
                f"Asking an endpoint needs {problem.name}, which isn't installed: pip install "
                "'lm-eval-kinject[questions]'"
            ) from problem
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=self.url.rstrip("/"), api_key=key, max_retries=0, timeout=TIMEOUT)
        self._lock = threading.Lock()
        self._form = _Form()
        self.name = self.model or self._only_model()

    def _only_model(self) -> str:
        found = [one.id for one in self._patiently(lambda: self._client.models.list()).data]
        if len(found) == 1:
            return str(found[0])
        listed = f"it lists {', '.join(found[:8])}{', …' if len(found) > 8 else ''}" if found else "it lists none"
        raise ModelError(f"Name the model of {self.url} with --model: {listed}.")

    def ask(self, request: Request) -> Reply:
        """See `Writer`."""
        from lm_eval_kinject.provenance import fingerprint

        headers = {"Idempotency-Key": fingerprint([self.name, request])}
        return self._in_some_form(request, lambda sent: partial(self._once, request, sent, headers))

    def stream(self, request: Request) -> Generator[str, None, None]:
        """Pieces of the answer as they come; whoever stops reading hangs up.

        Raises:
            ModelError: none can be had, or it breaks off; what has come is then incomplete.
        """

        def begin(sent: Mapping[str, Any]) -> Callable[[], Any]:
            return lambda: self._client.chat.completions.create(model=self.name, stream=True, **sent)

        with self._in_some_form(request, begin) as pieces:
            while (piece := self._patiently(lambda: next(pieces, None), tries=1)) is not None:
                for choice in getattr(piece, "choices", None) or ():
                    if text := getattr(getattr(choice, "delta", None), "content", None):
                        yield str(text)

    def _in_some_form(self, request: Request, call: Callable[[Mapping[str, Any]], Callable[[], Any]]) -> Any:
        """What a call gives in the richest form that the server takes."""
        while True:
            form = self._form
            sent = form.arguments(request)
            try:
                return self._patiently(call(sent))
            except _RefusedFormError as problem:
                plainer = form.plainer(str(problem), sent)
                if plainer is None:
                    raise ModelError(f"{self.url} refuses the request: {problem}") from problem
                with self._lock:
                    if self._form == form:  # another thread may have been told so first
                        self._form = plainer
                        self.faults["form not taken by the server"] += 1

    def _once(self, request: Request, sent: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        answer = self._client.chat.completions.create(model=self.name, extra_headers=dict(headers), **sent)
        choices: Any = getattr(answer, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:  # an error page of a proxy, or an object of another kind
            raise _PassingError("no completion in the answer", f"no chat completion: {str(answer)[:200]}")
        text, said = message.content or "", getattr(message, "refusal", None)
        reason = choices[0].finish_reason
        finish: Finish = "length" if reason == "length" else "refusal" if said or reason == "content_filter" else "stop"
        usage = getattr(answer, "usage", None)
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if isinstance(read, int) and isinstance(written, int):
            return Reply(said or text, finish, read, written, metered=True)
        return Reply(said or text, finish, tokens_in(request.system + request.user), tokens_in(text), metered=False)

    def _patiently(self, call: Callable[[], Any], tries: int | None = None) -> Any:
        import tenacity

        tries = tries or self.tries

        def wait(state: tenacity.RetryCallState) -> float:
            problem = state.outcome.exception() if state.outcome else None
            asked = problem.wait if isinstance(problem, _PassingError) else None
            backed = min(60.0, self.first_wait * 2 ** (state.attempt_number - 1)) * (0.5 + random.random() / 2)
            return backed if asked is None else max(asked, backed / 2)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            return retrying(lambda: self._named(call))
        except _PassingError as problem:
            if tries == 1:
                raise ModelError(
                    f"{self.url} gave no answer ({problem.kind}): {problem}. See that it runs there, and ask again."
                ) from problem
            raise ModelError(
                f"{self.url} gave no answer in {tries} tries ({problem.kind}): {problem}. What was answered is kept: "
                "run the same command again later, perhaps with a smaller --concurrency."
            ) from problem

    def _named(self, call: Callable[[], Any]) -> Any:
        """The call's answer; its errors are told apart into what passes, what a plainer form mends, and the rest."""
        import openai

        try:
            return call()
        except _PassingError as problem:
            self._count(problem.kind)
            raise
        except openai.APIStatusError as problem:
            raise self._of_status(problem.status_code, problem) from problem
        except openai.APIConnectionError as problem:  # time-outs are among these
            self._count("connections lost")
            raise _PassingError("connections lost", f"{problem} {problem.__cause__ or ''}".strip()) from problem
        except (openai.APIError, ValueError) as problem:  # a body that isn't the JSON that its header says
            self._count("no completion in the answer")
            raise _PassingError("no completion in the answer", str(problem)[:200]) from problem

    def _of_status(self, status: int, problem: Any) -> Exception:
        said = str(problem)
        if "insufficient_quota" in said:
            return ModelError(f"{self.url}: the account has no credit left. What was answered is kept.")
        if status in _PASSING or status >= 500:
            asked = _seconds(problem.response.headers.get("retry-after"))
            if asked is not None and asked > LONGEST_WAIT:
                return ModelError(
                    f"{self.url} asks to come back in {asked:.0f} s. What was answered is kept: run the same command "
                    "again then."
                )
            kind = "rate limits" if status == 429 else "server errors"
            self._count(kind)
            return _PassingError(kind, said[:200], asked)
        if status in (400, 422):
            return _RefusedFormError(said[:500])
        if status in (401, 403):
            return ModelError(f"{self.url} doesn't let us in ({status}): set OPENAI_API_KEY to a key that it knows.")
        if status == 404:
            return ModelError(
                f"{self.url} knows no such address or model ({said[:200]}): the address usually ends in /v1, and "
                "--model is the server's own name of the model."
            )
        return ModelError(f"{self.url} refuses ({status}): {said[:200]}")

    def _count(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1


class _RefusedFormError(Exception):
    """The server doesn't take the request as it is."""


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:  # a date, which servers of this kind don't send
        return None


# A model on this machine ----------------------------------------------------------------------------------------------


@dataclass
class LocalModel:
    """A transformers model, asked one request at a time; schemas are only in the prompt's words.

    Attributes:
        model: a Hub id or a folder.
    """

    model: str
    concurrency: int = 1
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model)
            self._model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto")
        except (OSError, ValueError) as problem:
            first = str(problem).splitlines()[0]
            raise ModelError(f"The writer {self.model} can't be loaded: {first}") from problem
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._lock = threading.Lock()
        # A folder's place says nothing of what is in it, and answers are kept under the model's name.
        self.name = f"hf:{self.model}" if not os.path.isdir(self.model) else f"hf:{_weights_name(self.model)}"

    @property
    def window(self) -> int | None:
        """Most tokens of prompt and answer together; None: the model's settings don't say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    @property
    def chats(self) -> bool:
        """Whether it has a chat template; a model without goes on writing where a request's text ends."""
        return bool(self._tokenizer.chat_template)

    @property
    def tokenizer(self) -> Any:
        """Its transformers tokenizer, for counting."""
        return self._tokenizer

    def ask(self, request: Request) -> Reply:
        """See `Writer`."""
        ids = self._prompt(request)
        most = self._most(request, ids)
        out = self._generate(request, ids, most)
        text = self._tokenizer.decode(out, skip_special_tokens=True)
        finish: Finish = "length" if len(out) >= most and int(out[-1]) != self._tokenizer.eos_token_id else "stop"
        return Reply(text, finish, int(ids.shape[1]), len(out), metered=True)

    def stream(self, request: Request) -> Generator[str, None, None]:
        """Pieces of the answer as they are written; whoever stops reading stops the writing.

        Raises:
            ModelError: the request doesn't fit the window.
        """
        from transformers import TextIteratorStreamer

        ids = self._prompt(request)
        most = self._most(request, ids)
        stop, ended = threading.Event(), SimpleQueue[BaseException | None]()
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)

        # In a thread of its own, which holds the lock: a reader that never comes back holds up nobody else.
        def work() -> None:
            try:
                self._generate(request, ids, most, streamer=streamer, stopping_criteria=[lambda *_: stop.is_set()])
                ended.put(None)
            except BaseException as problem:  # raised below, where it is seen
                ended.put(problem)
            finally:
                streamer.end()  # a second end is never read

        threading.Thread(target=work, daemon=True).start()
        try:
            yield from filter(None, streamer)
        finally:
            stop.set()
        if problem := ended.get():
            raise problem

    def _most(self, request: Request, ids: Any) -> int:
        """Tokens that an answer may have in the window, behind a prompt of these ids [1, T]."""
        room = self.window
        most = request.most_tokens if room is None else min(request.most_tokens, room - ids.shape[1])
        if most < 1:
            raise ModelError(
                f"A request of {ids.shape[1]} tokens doesn't fit the window of {self.model} ({room}): take shorter "
                "chunks (--words) or another writer."
            )
        return most

    def _generate(self, request: Request, ids: Any, most: int, **more: Any) -> Any:
        """Ids of the answer [T]."""
        import torch

        sampling = {"do_sample": True, "temperature": request.temperature} if request.temperature > 0 else {}
        with self._lock, torch.inference_mode():
            torch.manual_seed(request.seed)
            ids = ids.to(self._model.device)
            return self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
                **(sampling or {"do_sample": False}),
                **more,
            )[0, ids.shape[1] :]

    def _prompt(self, request: Request) -> Any:
        """Token ids [1, T]: in the model's chat template, or as plain text where it has none."""
        plain = f"{request.system}\n\n{request.user}\n"
        if not self._tokenizer.chat_template:
            return self._tokenizer(plain, return_tensors="pt")["input_ids"]
        turns = [{"role": "user", "content": plain}]  # some templates know no system turn
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def _weights_name(folder: str) -> str:
    from lm_eval_kinject.hub.content import fingerprint_model

    return fingerprint_model(folder)[:16]
