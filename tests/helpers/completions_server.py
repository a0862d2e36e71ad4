"""Completions and chat endpoints over a tiny model, on this machine: echo, log-probabilities, greedy text, faults."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class CompletionsServer:
    """Serves at ``url`` and ``chat_url`` until closed; takes a fault a request.

    Faults are a status, ``no_logprobs``, ``short`` or ``cut``; a chat's may be a mapping, which then is its choice.
    """

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.faults, self.seen, self._lock = [], [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.seen.append(asked)
                    fault = outer.faults.pop(0) if outer.faults else None
                    status = fault if isinstance(fault, int) else 200
                    answer = outer.chat if self.path.endswith("/chat/completions") else outer.answer
                    said = {"error": "scripted"} if status != 200 else answer(asked, fault)
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body) // 2 if fault == "cut" else len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1/completions"
        self.chat_url = f"http://127.0.0.1:{self._http.server_port}/v1/chat/completions"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def answer(self, asked, fault):
        prompts = asked["prompt"]
        prompts = prompts if isinstance(prompts, list) and not isinstance(prompts[0], int) else [prompts]
        return {"choices": [self.choice(n, prompt, asked, fault) for n, prompt in enumerate(prompts)]}

    def chat(self, asked, fault):
        """As a server that honours ``stop``, and renders messages with the model's own template."""
        if isinstance(fault, dict):
            return {"choices": [{"index": 0, **fault}]}
        if fault == "no choices":
            return {"object": "error", "message": "overloaded"}
        prompt = self.tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
        most = min(asked.get("max_tokens") or asked["max_completion_tokens"], 16)  # more takes long here
        text = self.choice(0, prompt, {**asked, "max_tokens": most}, None)["text"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"choices": [choice]}

    @torch.no_grad()
    def choice(self, index, prompt, asked, fault):
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids if isinstance(prompt, str) else list(prompt)
        start = len(ids)
        for _ in range(asked["max_tokens"]):
            ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id and not asked.get("echo"):
                break
        text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
        for stop in asked.get("stop") or ():
            text = text.split(stop)[0]
        if not asked.get("echo"):
            return {"index": index, "text": text}
        logs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)
        numbers = [None, *(float(logs[at, token]) for at, token in enumerate(ids[1:]))]
        top = [None, *({"best": float(row.max())} for row in logs[:-1])]
        if fault == "short":
            numbers, top = numbers[:-1], top[:-1]
        given = {"token_logprobs": numbers, "top_logprobs": top}
        return {"index": index, "text": text, "logprobs": None if fault == "no_logprobs" else given}
