"""The `kinject` command: what it prints, its exit codes, and that errors are one clear message."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm_eval_kinject import cli, doctor
from lm_eval_kinject.demo import VARIANTS, reading


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["kinject", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "news.jsonl"
    texts = ["The bridge at Dunmoor opened.", "Storm Amberfinch struck Whitebay.", "A cup was won at Redburgh."]
    file.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return file


def test_retrieve_shows_hits_with_scores(monkeypatch, capsys, corpus: Path) -> None:
    asked = ("retrieve", "Which town did the storm strike?", "--corpus", str(corpus), "--retriever", "bm25", "--k", "2")
    assert run(monkeypatch, *asked) == 0
    out = capsys.readouterr().out
    assert out.startswith("1. d1  score ")
    assert "Storm Amberfinch struck Whitebay." in out
    assert "2. " in out


@pytest.mark.parametrize("spelling", ["-k", "--k"])
def test_k_is_spelt_with_one_dash_or_two(monkeypatch, capsys, corpus: Path, spelling: str) -> None:
    asked = ("retrieve", "Which town did the storm strike?", "--corpus", str(corpus), "--retriever", "bm25")
    assert run(monkeypatch, *asked, spelling, "1") == 0
    out = capsys.readouterr().out
    assert out.startswith("1. d1  score ")
    assert "2. " not in out  # without the option there would be three


def test_the_question_in_the_readme_has_an_answer(monkeypatch, capsys) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (question,) = re.findall(r'kinject retrieve "(.+)"', readme)
    assert run(monkeypatch, "retrieve", question, "--retriever", "bm25", "-k", "1") == 0
    out = capsys.readouterr().out
    pinned = json.loads((Path(__file__).parents[1] / "gold" / "lab.json").read_text())["readme"]  # `make lab` writes it
    assert question == pinned["question"]
    assert out.startswith(f"1. {pinned['chunk']}  score ")
    (storm,) = re.findall(r"Storm \w+", question)
    assert storm in out


@pytest.mark.parametrize("command", [(), ("retrieve",), ("index",), ("index", "build"), ("adapters", "add")])
def test_help_is_spelt_short_too(monkeypatch, capsys, command: tuple[str, ...]) -> None:
    assert run(monkeypatch, *command, "-h") == 0
    short = capsys.readouterr().out
    assert run(monkeypatch, *command, "--help") == 0
    assert short == capsys.readouterr().out
    assert " ".join(("kinject", *command)) in short.splitlines()[1]
    assert "--help" in short


def test_an_empty_cache_says_what_would_be_in_it(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run(monkeypatch, "index", "list") == 0
    shown = capsys.readouterr()
    assert shown.out == ""  # a list of nothing, for whoever reads it line by line
    assert f"none yet in {tmp_path / 'cache'}" in shown.err


def test_an_error_is_one_message_and_exit_code_1(monkeypatch, capsys, corpus: Path) -> None:
    assert run(monkeypatch, "retrieve", "x", "--corpus", str(corpus), "--retriever", "bm52") == 1
    err = capsys.readouterr().err
    assert "bm25" in err
    assert "Traceback" not in err


def test_k_larger_than_the_corpus(monkeypatch, capsys, corpus: Path) -> None:
    assert run(monkeypatch, "retrieve", "x", "--corpus", str(corpus), "--retriever", "bm25", "--k", "9") == 1
    assert "9" in capsys.readouterr().err


def test_an_unknown_dtype(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "retrieve", "x", "--dtype", "float16") == 1
    assert "neither float32 nor bfloat16" in capsys.readouterr().err


def test_stopping_by_hand_exits_with_130(monkeypatch, capsys) -> None:
    def stopped(*, network: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", stopped)
    assert run(monkeypatch, "doctor") == 130
    assert "stopped" in capsys.readouterr().err


def test_corpus_show(monkeypatch, capsys, corpus: Path) -> None:
    assert run(monkeypatch, "corpus", "show", str(corpus)) == 0
    assert '"chunks": 3' in capsys.readouterr().out


def test_corpus_newswire_writes_an_edition_once(monkeypatch, capsys, tmp_path: Path) -> None:
    asked = ("corpus", "newswire", "--seed", "5", "--events", "300", "--out", str(tmp_path / "edition"))
    assert run(monkeypatch, *asked) == 0
    assert "300 chunks" in capsys.readouterr().out
    assert run(monkeypatch, *asked) == 1
    assert "already" in capsys.readouterr().err


def test_a_bm25_index_can_not_be_built(monkeypatch, capsys, corpus: Path) -> None:
    assert run(monkeypatch, "index", "build", "--corpus", str(corpus), "--retriever", "bm25") == 1
    assert "without an index" in capsys.readouterr().err


def test_index_build_info_verify_and_list(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    assert run(monkeypatch, "index", "build", "--corpus", str(corpus)) == 0
    assert "3 chunks of" in capsys.readouterr().out
    assert run(monkeypatch, "index", "list") == 0
    folder = capsys.readouterr().out.strip()
    assert run(monkeypatch, "index", "info", folder) == 0
    assert json.loads(capsys.readouterr().out)["chunks"] == 3
    assert run(monkeypatch, "index", "verify", folder) == 0
    vectors = Path(folder) / "embeddings.npy"
    vectors.chmod(0o644)
    vectors.write_bytes(vectors.read_bytes()[:-1])
    assert run(monkeypatch, "index", "verify", folder) == 1
    assert "embeddings.npy" in capsys.readouterr().out


def test_adapters_show_an_unknown_name(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "adapters", "show", "nobody") == 1
    assert "There is no adapter 'nobody'" in capsys.readouterr().err


def test_push_of_a_folder_that_is_no_run(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run(monkeypatch, "push", str(tmp_path), "--to", "me/x") == 1
    assert "kinject.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (
            "model",
            ["--base", "me/x", "--corpus", "me/c", "--unchecked-base"],
            ["--base", "--corpus", "--unchecked-base"],
        ),
        ("dataset", ["--licence", "mit", "--results", "x"], ["--licence", "--results"]),
        ("model", ["--benchmark", "a=me/q"], ["--benchmark is for --as run"]),
        ("run", ["--benchmark", "me/q"], ["--benchmark 'me/q' must be TASK=OWNER/DATASET"]),
        ("model", ["--framework", "inspect-ai"], ["--framework is for --as dataset"]),
        ("run", ["--framework", "inspect-ai"], ["--framework is for --as dataset"]),
        ("run", ["--public", "--pr"], ["--public is for a repository of your own"]),
    ],
)
def test_push_refuses_options_that_mean_nothing(monkeypatch, capsys, tmp_path: Path, kind, options, named) -> None:
    assert run(monkeypatch, "push", str(tmp_path), "--to", "me/x", "--as", kind, *options) == 1
    err = capsys.readouterr().err
    assert f"{len(named)} problem" in err
    assert all(text in err for text in named)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("model", ["--public", "--no-samples"], ["--public", "--no-samples"]),
        ("dataset", ["--source", "https://x", "--benchmark", "a=me/q"], ["--source", "--benchmark"]),
        ("dataset", ["--public", "--pr"], ["--public is for a repository of your own"]),
        ("model", ["--benchmark", "a=q", "--benchmark", "b"], ["'a=q' must be", "'b' must be"]),
    ],
)
def test_submit_refuses_options_that_mean_nothing(monkeypatch, capsys, tmp_path: Path, kind, options, named) -> None:
    assert run(monkeypatch, "submit", str(tmp_path), "--to", "me/x", "--as", kind, *options) == 1
    err = capsys.readouterr().err
    assert f"{len(named)} problem" in err
    assert "kinject submit" in err
    assert all(text in err for text in named)


def test_push_and_submit_hand_on_benchmarks_and_pull_requests(monkeypatch, capsys, tmp_path: Path) -> None:
    from lm_eval_kinject.hub.publish import Published

    seen: list[dict[str, object]] = []

    def note(*_: object, **options: object) -> Published:
        seen.append(options)
        return Published("me/x", "model", "c" * 40, "https://hub/me/x", (), ())

    for name in ("push.push_run", "submit.submit_scores", "submit.submit_results"):
        monkeypatch.setattr(f"lm_eval_kinject.hub.{name}", note)
    benchmark = ("--benchmark", "a=me/q#cloze", "--benchmark", "b=me/r", "--pr")
    assert run(monkeypatch, "push", str(tmp_path), "--to", "me/x", *benchmark) == 0
    assert run(monkeypatch, "submit", str(tmp_path), "--to", "me/x", *benchmark) == 0
    assert run(monkeypatch, "submit", str(tmp_path), "--to", "me/x", "--as", "dataset") == 0
    assert [one.get("benchmarks") for one in seen] == [{"a": "me/q#cloze", "b": "me/r"}] * 2 + [None]
    assert [one["pull_request"] for one in seen] == [True, True, None]


def test_train_with_a_recipe_that_is_not_there(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "train", "no-such-recipe") == 1
    assert "no-such-recipe" in capsys.readouterr().err


def test_doctor_says_what_to_do_and_its_exit_code_tells(monkeypatch, capsys) -> None:
    found = [doctor.Finding("a", "ok", "1"), doctor.Finding("b", "problem", "broken", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda *, network: found)
    assert run(monkeypatch, "doctor") == 1
    assert "mend it" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda *, network: found[:1])
    assert run(monkeypatch, "doctor") == 0
    assert "All is well" in capsys.readouterr().out


def test_the_checks_of_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache" / "indexes" / "half.building").mkdir(parents=True)
    (tmp_path / "cache" / "indexes" / "broken").mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {f.subject: f for f in doctor.examine()}
    assert found["lm-eval"].state == "ok"
    assert found["task current_events"].state == "ok"
    tasks = [f for f in found.values() if f.subject.startswith("task ")]
    files = {file.stem for file in (Path(__file__).parents[2] / "tasks").glob("*/*.yaml")}
    assert {f.subject.removeprefix("task ") for f in tasks} == files - {"kinject_mmlu", "kinject_mmlu_cloze"}  # groups
    assert {f.state for f in tasks} == {"ok"}
    assert found["documents"].state == "ok"
    assert found["scans"].state in {"ok", "note"}
    assert found["Hub"].state == "note"
    assert found["index half.building"].state == "note"
    assert found["index broken"].state == "problem"
    assert found["index broken"].remedy.startswith("delete")


def test_the_doctor_sees_a_hook_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_added", lambda: (True, False))
    found = {f.subject: f for f in doctor._discovery()}
    assert found["rag-hf in lm_eval"].state == "ok"
    assert found["tasks in lm_eval"].state == "problem"
    assert "python -m lm_eval_kinject" in found["tasks in lm_eval"].remedy


def test_the_doctor_compares_versions_with_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "4.57.0", "torch": "2.13.0+cpu", "peft": "0.30.0rc1"}
    known = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: versions.get(name) or known(name))
    found = {f.subject: f for f in doctor._versions()}
    assert found["transformers"].state == "problem"
    assert found["transformers"].remedy == "run `pip install 'transformers>=5'`"
    assert {found[name].state for name in ("torch", "peft", "lm-eval")} == {"ok"}


def test_the_doctor_reports_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> Iterator[doctor.Finding]:
        yield doctor.Finding("first", "ok", "seen")
        raise ModuleNotFoundError("No module named 'lm_eval'")

    for name in ("_versions", "_discovery", "_weights", "_documents", "_cache", "_hub"):
        monkeypatch.setattr(doctor, name, lambda: ())
    monkeypatch.setattr(doctor, "_tasks", lacking)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.examine()
    assert [(f.subject, f.state) for f in found] == [("first", "ok"), ("lacking", "problem"), ("device", "problem")]
    assert "No module named 'lm_eval'" in found[1].detail


def test_a_task_whose_yaml_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: a/b\noutput_tpye: multiple_choice\n")
    monkeypatch.setattr(doctor, "tasks_dir", lambda: tmp_path)
    found = {f.subject: f for f in doctor._tasks()}
    assert found["task broken"].state == "problem"
    assert "output_tpye" in found["task broken"].detail


def test_the_doctor_reaches_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    found = next(iter(doctor._hub()))
    assert found.state == "note"
    assert "can't be reached" in found.detail


def test_the_demos_last_line_tells_gains_from_noise() -> None:
    closed, found = [1.0, 0.0, 0.0, 0.0] * 10, [1.0, 1.0, 1.0, 0.0] * 10
    answers = dict(zip(VARIANTS, (closed, found, [1.0] * 40, [*closed[:-1], 1.0]), strict=True))
    line = reading(answers, recall=0.9)
    assert line.startswith("Closed book 25.0 % (")
    assert "with minilm and k=3: 75.0 % (" in line
    assert "+50.0 points (" in line
    assert "recall@3 = 0.900" in line
    assert line.endswith("no more than noise: McNemar p = 1).")
