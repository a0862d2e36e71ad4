"""A question set from corpus to export, untroubled or killed at any moment: written, verified, paraphrased, reviewed.

The one idea: a process dies by SIGKILL at a seam that is named: while an answer of a stage is on its way, while a
decision is written (before, in the middle, or whole but not confirmed), or between two tables of an export. It is begun
again from the start each time, and in the end everything has to be, byte by byte, as if nothing had happened.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from helpers.writer_server import Fault, Kind, WriterServer
from lm_eval_kinject.questions import export, reviews
from lm_eval_kinject.questions.asking import Endpoint
from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.verify import verify_questions
from lm_eval_kinject.questions.wordings import Settings as WordingSettings
from lm_eval_kinject.questions.wordings import write_wordings
from lm_eval_kinject.questions.write import Settings, write_questions

ASKING = {
    "write": "You write multiple choice",
    "rank": "You order questions",
    "verify": "You are",
    "paraphrase": "You paraphrase",
}
"""Stage -> how its requests begin."""
SEAMS = (*ASKING, "decide", "export")
FILES = ("questions.jsonl", "verdicts.jsonl", "paraphrases.jsonl", "reviews.jsonl")
CONCURRENCY = 3
_PRELOADED = [
    "openai.resources.chat",
    "tenacity",
    "pyarrow.parquet",
    "lm_eval_kinject.stats",
    "lm_eval_kinject.hub.push",
    "lm_eval_kinject.questions.export",
    "lm_eval_kinject.questions.wordings",
]
"""What a process would spend most of its time on; what is outside of site-packages isn't found by Python 3.11.7."""


def news(file: Path, chunks: int) -> None:
    """Chunks of six sentences whose words occur nowhere else."""
    words = ["".join(random.Random(n).sample("bdfgklmnprst", 6)) for n in range(chunks * 24)]
    rows = []
    for n in range(chunks):
        mine = words[24 * n : 24 * n + 24]
        text = " ".join(f"The {a} {b} of {c} had been {d}." for a, b, c, d in zip(*[iter(mine)] * 4, strict=True))
        rows.append({"id": f"c{n}", "text": text})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def opinion(name: str, place: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a reviewer thinks of a question: ann edits and rejects every fourth, bob rejects every fifth."""
    if name == "bob":
        return {"action": "reject", "reason": "dull"} if place % 5 == 4 else {"action": "accept"}
    if place % 4 == 1:
        return {"action": "reject", "reason": "wrong"}
    if place % 4:
        return {"action": "accept"}
    question = row["question"].replace("Which word is left out", "Name the word that is missing here")
    return {"action": "edit", "edit": {"question": question, "choices": row["choices"], "answer": row["answer"]}}


def tell(url: str, corpus: str, folder: str, *, dies: tuple[str, int, str] | None = None) -> None:
    """The whole story; ``dies``: at which seam of this process, at its how-manieth passing, and how."""
    if dies is not None:
        _prepare_to_die(*dies)
    there = QuestionSet.begin(Path(folder) / "set", corpus)
    settings = WordingSettings(count=2)
    with there.locked() as ledger:
        asker = Asker(Endpoint(url, model="scripted", concurrency=CONCURRENCY, first_wait=0.001), ledger)
        write_questions(there, asker, Settings(min_words=10), lambda _: None)
        verify_questions(there, asker, lambda _: None)
        write_wordings(there, asker, settings, lambda _: None)
    for place, row in enumerate(there.questions()):
        for name in ("ann", "bob"):
            reviews.decide(there, name, row["id"], **opinion(name, place, row))
    out = Path(folder) / "out"
    if not out.exists():
        export.export_set(QuestionSet.open(there.folder), out, export.Settings("story", few_shot=1))


def _prepare_to_die(seam: str, moment: int, how: str) -> None:
    passed = 0
    room, name = (reviews, "append_whole") if seam == "decide" else (export, "_write_table")
    real = getattr(room, name)

    def dying(first: Any, second: Any) -> None:
        nonlocal passed
        passed += 1
        if passed < moment:
            return real(first, second)
        if how == "half":
            os.write(first, second[: len(second) // 2])
        elif how == "whole":
            real(first, second)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(room, name, dying)


@dataclass
class _Trap(Mapping[int, Fault]):
    """A fault for the next request but some of one stage, whatever its number."""

    server: WriterServer
    begins: str
    after: int
    fault: Fault

    def get(self, key: int, default: Any = None) -> Any:
        if not self.server.seen[key]["messages"][0]["content"].startswith(self.begins):
            return default
        self.after -= 1
        return self.fault if self.after == -1 else default

    def __getitem__(self, key: int) -> Fault:
        raise KeyError(key)

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def killed_story(root: Path, kills: Sequence[str], *, chunks: int, seed: int = 11) -> dict[str, Any]:
    """Tells the story calmly and with kills, holds the two against each other, and says what it took.

    Args:
        root: an empty folder.
        kills: seams in the order in which they come in the story.
        chunks: of the corpus.
        seed: of moments and ways.
    """
    news(root / "news.jsonl", chunks)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)

    def start(url: str, name: str, dies: tuple[str, int, str] | None = None) -> BaseProcess:
        target = (url, str(root / "news.jsonl"), str(root / name))
        process: BaseProcess = context.Process(target=tell, args=target, kwargs={"dies": dies})
        process.start()
        return process

    def finish(process: BaseProcess, code: int) -> None:
        process.join(300)
        assert process.exitcode == code, f"ended with {process.exitcode}, not {code}"

    with WriterServer() as server:
        finish(start(server.url, "calm"), 0)
        requests = len(server.delivered)
    draw = random.Random(seed)
    how: Counter[str] = Counter()
    with WriterServer() as server:
        for seam in kills:
            process: list[BaseProcess] = []

            def kill(process: list[BaseProcess] = process) -> None:
                while not process:  # the first request can be faster than the line below
                    time.sleep(0.001)
                time.sleep(draw.random() * 0.01)
                pid = process[0].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

            dies, ways = None, ["cut", "cut before", "no usage"]  # "no usage": after the whole answer
            if seam == "decide":
                ways = ["before", "half", "whole"]
            elif seam == "export":
                ways = ["before", "whole"]
            way = draw.choice(ways)
            how[f"{seam}: {way}"] += 1
            if seam in ASKING:
                kind: Kind = way  # type: ignore[assignment]
                server.faults = _Trap(server, ASKING[seam], draw.randrange(2), Fault(kind, then=kill))
            else:
                server.faults = {}
                # The decisions that are kept aren't written again, so every moment counts from where it died before.
                dies = (seam, draw.randrange(1, 4), way)
            process.append(start(server.url, "killed", dies))
            finish(process[0], -signal.SIGKILL)
        server.faults = {}
        finish(start(server.url, "killed"), 0)
        assert len(server.delivered) == requests
        paid = sum(server.delivered.values())
        assert paid <= requests + len(kills) * CONCURRENCY
    for name in ("calm", "killed"):
        assert len((root / name / "set" / "answers.jsonl").read_bytes().splitlines()) == requests
    _same(root / "calm", root / "killed")
    return {"kills": len(kills), "ways": dict(sorted(how.items())), "requests": requests, "paid_again": paid - requests}


def _same(calm: Path, killed: Path) -> None:
    for name in FILES:
        assert (calm / "set" / name).read_bytes() == (killed / "set" / name).read_bytes(), name
    files = {path.relative_to(calm / "out"): path.read_bytes() for path in (calm / "out").rglob("*") if path.is_file()}
    others = {p.relative_to(killed / "out"): p.read_bytes() for p in (killed / "out").rglob("*") if p.is_file()}
    assert files == others
