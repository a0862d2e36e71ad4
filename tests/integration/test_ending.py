"""How a run of the `lm_eval` command ends before its end: Ctrl-C and our errors in words, everything else untouched.

The processes are real, and so is the signal, which comes at a moment that the run itself shows: by its progress bar, or
by a part of an index that has appeared on the disk.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.models import ending
from lm_eval_kinject.retrieval.encoders import KNOWN, load_encoder
from lm_eval_kinject.retrieval.index import build_index

LM_EVAL = Path(sys.executable).with_name("lm_eval")
STOPPED = "kinject: stopped; what is built of an index is kept, and the same command goes on with it\n"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHARD = 512  # chunks that are put on the disk together


def interrupted(folder: Path, arguments: list[str], moment: Callable[[str], object]) -> tuple[int, str]:
    """Exit code and stderr of a run of `lm_eval` that got one SIGINT, when `moment` was true of its stderr so far."""
    log = folder / "stderr"
    environment = {**os.environ, **ENVIRONMENT, "KINJECT_CACHE": str(folder / "cache")}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [LM_EVAL, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
            cwd=folder,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs with &
        )
        try:
            while not moment(log.read_text(encoding="utf-8", errors="replace")):
                assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            return process.wait(timeout=120), log.read_text(encoding="utf-8", errors="replace")
        finally:
            process.kill()


def test_ctrl_c_while_scoring(tmp_path: Path) -> None:
    command = ["--model", "rag-hf", "--model_args", "retriever=bm25,k=3", "--tasks", "current_events_cloze"]
    command += ["--output_path", "out"]
    code, stderr = interrupted(
        tmp_path, command, lambda said: re.search(r"Running loglikelihood requests: +[1-9]\d?%", said)
    )
    assert code == -signal.SIGINT  # a shell says 130, and stops a loop around it
    assert stderr.endswith("\n" + STOPPED)
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_an_index_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": f"d{i}", "text": f"Storm {i} struck town {i * 7} and {i * 13} homes lost power."} for i in range(2000)
    ]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    indexes = tmp_path / "cache" / "indexes"
    command = ["--model", "rag-hf", "--model_args", "corpus=news.jsonl,k=3", "--tasks", "current_events_cloze"]
    code, stderr = interrupted(
        tmp_path, [*command, "--limit", "4"], lambda _: list(indexes.glob("*.building/shards/*.json"))
    )
    assert code == -signal.SIGINT
    assert stderr.endswith("\n" + STOPPED)
    assert "Traceback" not in stderr
    finished = sorted(indexes.glob("*.building/shards/*.json"))
    assert 1 <= len(finished) <= 3  # of four

    embedded: list[int] = []
    encoder = load_encoder("minilm", spec=KNOWN["minilm"])
    encode = encoder.encode_passages
    monkeypatch.setattr(encoder, "encode_passages", lambda chunks: embedded.append(len(chunks)) or encode(chunks))
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    assert len(build_index(load_corpus(str(tmp_path / "news.jsonl")), encoder).vectors) == 2000
    assert sum(embedded) == 2000 - SHARD * len(finished)


RAISING = """
import sys
model, arguments = sys.argv[1:]
sys.argv = ["lm_eval", "--model", model, "--tasks", "current_events_cloze", "--limit", "1"]
sys.argv += ["--model_args", arguments] if arguments else []
from lm_eval.__main__ import cli_evaluate
from lm_eval.models.dummy import DummyLM
def stopped(*_, **__):
    raise KeyboardInterrupt
DummyLM.loglikelihood = stopped
cli_evaluate()
"""


@pytest.mark.parametrize(
    ("model", "arguments", "code", "end"),
    [
        ("dummy", "", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("rag-hf", "k=-1", 1, "\n  - k=-1 must be a whole number of chunks, 0 or more; correct it\n"),
    ],
)
def test_other_models_keep_their_traceback_and_our_errors_need_none(
    tmp_path: Path, model: str, arguments: str, code: int, end: str
) -> None:
    environment = {**os.environ, **ENVIRONMENT, "KINJECT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", RAISING, model, arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.endswith(end)
    ours = model == "rag-hf"
    assert ("Traceback" in done.stderr, "\nkinject: " in done.stderr) == (not ours, ours)


# The hook itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the hook that was in place before ours is told."""
    told: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: told.append(error))
    ending.install()
    ending.install()
    return told


def test_a_script_that_calls_lm_eval_keeps_its_tracebacks(others, capsys) -> None:
    for error in (KeyboardInterrupt(), CorpusError("gone"), ValueError("x")):
        try:
            raise error
        except BaseException as raised:
            sys.excepthook(type(raised), raised, raised.__traceback__)
    assert [str(error) for error in others] == ["", "gone", "x"]  # each once: the hook stands there once
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), STOPPED),
        (CorpusError("gone; give another"), "kinject: gone; give another\n"),
        (KeyError("x"), ""),
    ],
)
def test_out_of_the_command(others, capsys, monkeypatch, error: BaseException, said: str) -> None:
    from lm_eval import __main__ as command

    def fail() -> None:
        raise error

    monkeypatch.setattr(command, "HarnessCLI", fail)
    try:
        command.cli_evaluate()
    except BaseException as raised:
        sys.excepthook(type(raised), raised, raised.__traceback__)
    assert capsys.readouterr().err == ("\n" + said if said else "")
    assert others == ([] if said else [error])
