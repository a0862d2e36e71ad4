"""Writing that is killed with SIGKILL at any moment, and begun again, gives what untroubled writing gives.

An answer that is in the ledger is never asked for again. What was under way when the process died is, as nobody on this
side can know of it: at most as many requests a kill as were sent at a time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from helpers import question_writer
from helpers.writer_server import Fault, WriterServer

KILLS, CONCURRENCY = 6, 3


def test_killed_at_random_moments(tmp_path: Path) -> None:
    words = ["".join(random.Random(n).sample("bdfgklmnprst", 6)) for n in range(8 * 24)]
    corpus = tmp_path / "news.jsonl"
    rows = []
    for n in range(8):
        mine = words[24 * n : 24 * n + 24]
        text = " ".join(f"The {a} {b} of {c} had been {d}." for a, b, c, d in zip(*[iter(mine)] * 4, strict=True))
        rows.append({"id": f"c{n}", "text": text})
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openai", "tenacity", "helpers.question_writer"])

    def start(url: str, folder: Path) -> BaseProcess:
        more = {"concurrency": CONCURRENCY}
        process: BaseProcess = context.Process(
            target=question_writer.write, args=(url, str(corpus), str(folder)), kwargs=more
        )
        process.start()
        return process

    with WriterServer() as server:
        calm = start(server.url, tmp_path / "calm")
        calm.join(60)
        assert calm.exitcode == 0
        requests = len(server.seen)
        assert requests == 2 * len(rows)

    draw = random.Random(11)
    folder = tmp_path / "killed"
    with WriterServer() as server:
        first = 0
        for _ in range(KILLS):
            process: list[BaseProcess] = []

            def kill(process: list[BaseProcess] = process) -> None:
                while not process:  # the first request can be faster than the line below
                    time.sleep(0.001)
                time.sleep(draw.random() * 0.01)  # while the answer is read, written down, or the next one sent
                pid = process[0].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

            moment = first + draw.randrange(1, 4)
            kind = draw.choice(["cut", "cut before", "no usage"])  # "no usage": after the whole answer
            server.faults = {moment: Fault(kind, then=kill)}
            process.append(start(server.url, folder))
            process[0].join(60)
            assert process[0].exitcode == -signal.SIGKILL
            first = len(server.seen)
            kept = (folder / "answers.jsonl").read_bytes() if (folder / "answers.jsonl").exists() else b""
            keys = [json.loads(line)["key"] for line in kept.splitlines() if line.endswith(b"}")]
            assert len(keys) == len(set(keys))
            before = {key: server.delivered[key] for key in keys}
        server.faults = {}
        last = start(server.url, folder)
        last.join(60)
        assert last.exitcode == 0
        assert {key: server.delivered[key] for key in before} == before  # nothing in the ledger is asked for again
        assert len(server.delivered) == requests
        assert sum(server.delivered.values()) <= requests + KILLS * CONCURRENCY
    assert len((folder / "answers.jsonl").read_bytes().splitlines()) == requests
    assert (folder / "questions.jsonl").read_bytes() == (tmp_path / "calm" / "questions.jsonl").read_bytes()
