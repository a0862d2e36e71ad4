"""A study from file to results, on a random model and eight questions: what it writes, goes on with and compares."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers.local_tasks import copy_current_events, evaluate, task_manager, write_corpus
from helpers.tiny_models import make_tiny
from helpers.training import write_corpus as write_training_corpus
from helpers.training import write_recipe
from lm_eval.utils import sanitize_model_name

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.study import rerun as reruns
from lm_eval_kinject.study.cells import cell_folder
from lm_eval_kinject.study.engines import RayTasks, Workers
from lm_eval_kinject.study.grid import read_study
from lm_eval_kinject.study.load import load_curves, load_outcomes, manifests, read_samples, result_file
from lm_eval_kinject.study.run import run_study

WORKER = (sys.executable, "-m", "lm_eval_kinject.cli", "study", "run")


def write_study(place: Path, name: str = "study", **changes) -> Path:
    said = {
        "title": "Tiny",
        "models": {"tiny": {"pretrained": make_tiny("llama", place / "models"), "device": "cpu"}},
        "variants": {
            "base": None,
            "lora": {"recipe": str(place / "lora.yaml")},
            "full": {"recipe": str(place / "full.yaml")},
        },
        "retrievers": ["bm25"],
        "k": [0, 1, 2],
        "tasks": ["current_events_cloze", "current_events"],
        "corpus": str(place / "corpus"),
        "include_path": str(place / "ours"),
        "batch_size": 4,
        **changes,
    }
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    model = make_tiny("llama", folder / "models")
    corpus = write_training_corpus(folder / "text")
    write_recipe(folder / "full.yaml", model, corpus)
    write_recipe(folder / "lora.yaml", model, corpus, method="lora", rank=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINJECT_CACHE", str(folder / "cache"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        yield folder


@pytest.fixture(scope="module")
def done(place):
    """A study that ran undisturbed."""
    study = read_study(write_study(place))
    out = place / "undisturbed"
    told: list[str] = []
    outcome = run_study(study, out, say=told.append)
    assert outcome.failures == []
    assert (outcome.scored, outcome.there) == (18, 0)
    return study, out, told


def without_times(value):
    """A result without dates, durations and the names of temporary places."""
    if isinstance(value, dict):
        dropped = ("date", "seconds", "start_time", "end_time", "total_evaluation_time_seconds", "git_hash")
        return {k: without_times(v) for k, v in value.items() if k not in dropped}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def contents(out: Path) -> dict[str, object]:
    """All results and samples of a study's folder, without times; paths of the folder itself replaced."""
    found = {}
    for manifest in manifests(out):
        results = result_file(manifest.parent)
        both = [without_times(read_json(results)), read_samples(results), read_json(manifest)["axes"]]
        text = json.dumps(both).replace(str(out), "OUT").replace(sanitize_model_name(str(out)), "OUT")
        found[str(manifest.parent.relative_to(out))] = json.loads(text)
    return found


def test_a_cell_is_what_the_command_writes(done, place):
    study, out, _ = done
    cell = next(c for c in study.cells if c.variant == "base" and dict(c.arguments)["k"] == 2)
    file = result_file(cell_folder(out, cell))
    found, samples = read_json(file), read_samples(file)
    arguments = {"pretrained": study.models["tiny"]["pretrained"], **dict(cell.arguments)}
    manager = task_manager(place / "ours")
    settings = {"limit": None, "num_fewshot": 0, "batch_size": 4, "bootstrap_iters": 100_000}
    command = evaluate("rag-hf", arguments, [cell.task], manager, **settings)
    assert found["results"] == json.loads(json.dumps(command["results"], default=str))
    ours, theirs = without_times(found), without_times(command)
    assert set(theirs) - {"samples"} <= set(ours)
    config = ours["config"]
    assert (config["model"], config["model_args"]) == ("rag-hf", {**study.models["tiny"], **dict(cell.arguments)})
    for part in ("configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[part] == json.loads(json.dumps(theirs[part], default=str)), part
    one, other = config["kinject"], theirs["config"]["kinject"]
    assert {k: v for k, v in one.items() if k != "scorer"} == json.loads(
        json.dumps({k: v for k, v in other.items() if k != "scorer"})
    )
    rows = command["samples"][cell.task]
    assert len(samples[cell.task]) == len(rows) == 8
    for a, b in zip(samples[cell.task], sorted(rows, key=lambda row: row["doc_id"]), strict=True):
        assert a["arguments"]["gen_args_0"]["arg_0"] == b["arguments"][0][0]
        assert [float(r[0][0]) for r in a["resps"]] == pytest.approx([r[0][0] for r in b["resps"]], abs=1e-4)
        assert (a["acc"], a["doc_hash"], a["prompt_hash"]) == (b["acc"], b["doc_hash"], b["prompt_hash"])


def test_trained_variants_differ_from_the_base_and_each_other(done):
    study, out, told = done
    closed = {
        cell.variant: [row["resps"] for row in read_samples(result_file(cell_folder(out, cell)))[cell.task]]
        for cell in study.cells
        if dict(cell.arguments)["k"] == 0 and cell.task == "current_events_cloze"
    }
    assert closed["base"] != closed["lora"] != closed["full"] != closed["base"]
    assert {name.split("/")[1] for name in load_curves(out)} == {"lora-seed0", "full-seed0"}
    assert sum("trained in" in line for line in told) == 2
    assert sum("3 cells in" in line for line in told) == 6


def test_an_adapter_that_was_put_on_scores_as_if_loaded(done, place):
    study, out, _ = done
    cell = next(c for c in study.cells if c.variant == "lora" and c.task == "current_events_cloze")
    arguments = {
        "pretrained": study.models["tiny"]["pretrained"],
        "peft": str(out / "runs" / "tiny" / "lora-seed0"),
        "k": 0,
    }
    command = evaluate("rag-hf", arguments, [cell.task], task_manager(place / "ours"), limit=None, num_fewshot=0)
    samples = read_samples(result_file(cell_folder(out, cell)))[cell.task]
    for a, b in zip(samples, sorted(command["samples"][cell.task], key=lambda row: row["doc_id"]), strict=True):
        assert [float(r[0][0]) for r in a["resps"]] == pytest.approx([r[0][0] for r in b["resps"]], abs=1e-4)
    said = read_json(result_file(cell_folder(out, cell)))["config"]["kinject"]
    assert said["peft"] == command["config"]["kinject"]["peft"]


def test_outcomes_are_the_samples(done):
    study, out, _ = done
    outcomes = load_outcomes(out)
    assert len(outcomes) == len(study.cells)
    for outcome in outcomes:
        assert len(outcome.answers) == 8
        assert outcome.tokens_forwarded > 0
        assert all(answer.cluster == f"c{answer.doc_id}" for answer in outcome.answers)
        if outcome.axes["k"] == 2:
            assert outcome.axes["retriever"] == "bm25"
            assert all(answer.prompt_places == 2 for answer in outcome.answers)
            assert all(answer.gold_rank == answer.gold_place for answer in outcome.answers)
            assert outcome.recall["recall@1"] == sum(answer.gold_rank == 1 for answer in outcome.answers) / 8
    means = {(o.axes["variant"], o.axes["task"], o.axes["k"]): sum(a.correct for a in o.answers) / 8 for o in outcomes}
    for cell in study.cells:
        figures = read_json(result_file(cell_folder(out, cell)))["results"][cell.task]
        assert means[cell.variant, cell.task, dict(cell.arguments)["k"]] == figures["acc,none"]


def test_a_second_run_does_nothing_and_another_study_is_refused(done, place):
    study, out, _ = done
    before = contents(out)
    outcome = run_study(study, out)
    assert (outcome.scored, outcome.there, outcome.failures) == (0, 18, [])
    assert contents(out) == before
    other = read_study(write_study(place, "other", limit=3))
    with pytest.raises(ArgumentError, match="limit was something else"):
        run_study(other, out)
    more = read_study(write_study(place, "more", k=[0, 1, 2, 3], variants={"base": None}))
    assert run_study(more, place / "more").scored == 8
    (place / "foreign").mkdir()
    (place / "foreign" / "file").write_text("x")
    with pytest.raises(ArgumentError, match="is not empty and holds no study"):
        run_study(study, place / "foreign")
    with pytest.raises(ArgumentError, match="there are no such weights"):
        run_study(study, out, only=["tiny/bsae"])


def test_killed_and_resumed_is_undisturbed(done, place):
    study, out, _ = done
    file, target = place / "study.yaml", place / "killed"
    command = [*WORKER, str(file), "--out", str(target), "--no-report"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(place / "datasets")}
    kills = 0
    for wanted in ("runs/tiny/*/work", "cells/tiny/*/*/*/*/cell.json"):  # in a training, and between cells
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(target.glob(wanted)))
        while process.poll() is None and len(list(target.glob(wanted))) <= before:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    outcome = run_study(study, target)
    assert outcome.failures == []
    assert reruns._flat_differences("", contents(out), contents(target)) == []
    assert not list((target / "cells").rglob(".*"))


def test_failures_are_told_and_the_rest_goes_on(place):
    changes = {
        "variants": {"base": None, "gone": {"adapter": "no-such-adapter"}},
        "k": [0, 1, 999],
        "tasks": "current_events_cloze",
    }
    told: list[str] = []
    outcome = run_study(read_study(write_study(place, "failing", **changes)), place / "failing", say=told.append)
    assert outcome.scored == 2
    problems = {failure.cell or failure.weights: failure.problem for failure in outcome.failures}
    assert len(problems) == 2
    assert "tiny/gone" in problems
    assert any("has only 8 chunks" in problem for problem in problems.values())
    assert any("no-such-adapter" in problem for problem in problems.values())
    assert sum("FAILED" in line for line in told) == 2


def test_several_processes_do_what_one_does(done, place):
    study, out, _ = done
    target = place / "workers"
    environment = {"HF_DATASETS_CACHE": str(place / "datasets")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        outcome = run_study(study, target, engine=Workers(2, WORKER))
    assert outcome.failures == []
    assert outcome.scored == 18
    assert reruns._flat_differences("", contents(out), contents(target)) == []


def process_of(log: Path, attempt: int) -> int | None:
    """The process that made an attempt at a job, once its log says so."""
    said = re.findall(r"process (\d+)", log.read_text()) if log.is_file() else []
    return int(said[attempt - 1]) if len(said) >= attempt else None


def kill_when(log: Path, attempt: int, there: Path | None = None) -> threading.Thread:
    """Kills the process of an attempt, as soon as a path exists; whether it did so is in ``kills``."""

    def watch() -> None:
        while (process := process_of(log, attempt)) is None or not (there is None or there.exists()):
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def on_ray(place):
    """A cluster of two workers, which the engines of tests find there."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(place / "datasets"))
        patch.setenv("HOME", str(place))  # where Ray leaves a token
        with contextlib.ExitStack() as until:
            try:
                until.enter_context(RayTasks(2).cluster())
            except ArgumentError:
                # Its processes have half a minute to start in. Where Ray starts without us, the fault is ours.
                try:
                    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
                except Exception as problem:
                    pytest.skip(f"Ray doesn't start here: {problem}")
                ray.shutdown()
                raise
            yield


def test_ray_does_what_one_process_does_though_a_worker_is_killed(done, place, on_ray):
    study, out, _ = done
    target, told = place / "ray", []
    lora, full = target / "logs" / "tiny_lora-seed0.log", target / "logs" / "tiny_full-seed0.log"
    only = ["tiny/full-seed0", "tiny/lora-seed0"]
    killer = kill_when(lora, 1, target / "runs" / "tiny" / "lora-seed0" / "work")
    outcome = run_study(study, target, only=only, engine=RayTasks(2), say=told.append)
    assert not killer.is_alive()
    assert process_of(lora, 2) not in (None, process_of(lora, 1))
    assert process_of(full, 2) is None  # the other one lost nothing
    assert (outcome.scored, outcome.there, outcome.failures) == (12, 0, [])
    assert told == [f"{name}: handed to Ray, its log is {log}" for name, log in zip(only, (full, lora), strict=True)]
    both = {name: cell for name, cell in contents(out).items() if "/base/" not in name}
    assert reruns._flat_differences("", both, contents(target)) == []
    again = run_study(study, target, only=only, engine=RayTasks(2))
    assert (again.scored, again.there, again.failures) == (0, 12, [])


def test_a_job_whose_ray_worker_dies_each_time_is_told_with_its_log(place, on_ray):
    study = read_study(write_study(place, "dying", variants={"base": None}))
    log = place / "dying" / "logs" / "tiny_base.log"
    killer = kill_when(log, 1)
    outcome = run_study(study, place / "dying", engine=RayTasks(1, retries=0))
    assert not killer.is_alive()
    (failure,) = outcome.failures
    assert (outcome.scored, failure.weights, failure.cell) == (0, "tiny/base", None)
    assert failure.problem.startswith("its worker died, tried once (")
    assert failure.problem.endswith(f"; its log is {log}")


def test_a_ray_cluster_that_is_not_there_is_told(place, monkeypatch):
    ray = pytest.importorskip("ray")
    study = read_study(write_study(place, "nowhere", variants={"base": None}))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the other tests' cluster
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(ArgumentError, match=f"--ray {re.escape(address)}: no Ray cluster"):
            run_study(study, place / "nowhere", engine=RayTasks(1, address))


def test_ray_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'lm-eval-kinject\[ray\]'"):
        RayTasks(1)


def test_rerun_finds_the_same_bits_and_names_what_was_changed(done, place):
    study, out, _ = done
    cell = next(c for c in study.cells if c.variant == "lora" and dict(c.arguments)["k"] == 1)
    found = reruns.rerun(cell_folder(out, cell))
    assert found.lines() == ["8 samples compared: the same, to the bit"]
    copy = place / "doctored"
    shutil.copytree(out, copy)
    folder = cell_folder(copy, cell)
    samples = next(folder.glob("samples_*.jsonl"))
    lines = samples.read_text(encoding="utf-8").splitlines()
    place_of = next(i for i, line in enumerate(lines) if json.loads(line)["doc_id"] == 5)
    row = json.loads(lines[place_of])
    row["acc"] = 1.0 - row["acc"]
    lines[place_of] = json.dumps(row)
    samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = reruns.rerun(folder)
    assert not found.same
    assert found.made_from == (f"{samples.name} was changed after it was written",)
    assert [re.sub(r": .*", "", line) for line in found.differences] == [f"{cell.task}, document 5, acc"]


def test_rerun_has_the_threads_of_the_result():
    own, told = torch.get_num_threads(), []
    with reruns._threads(own + 1, told.append):
        assert torch.get_num_threads() == own + 1
    assert told == [f"with {own + 1} threads, as it was scored (here: {own})"]
    for count in (own, None):  # results of earlier releases don't say
        with reruns._threads(count, told.append):
            assert torch.get_num_threads() == own
    assert len(told) == 1
    assert torch.get_num_threads() == own


def test_rerun_has_the_metadata_of_the_command(place, tmp_path):
    texts = tmp_path / "news.jsonl"
    rows = [{"id": f"t{n}", "text": f"Bridge {n} was opened in the rain.", "date": f"2026-0{n}-01"} for n in (1, 2, 3)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "lm_eval_kinject", "--model", "rag-hf", "--device", "cpu"]
    command += [
        "--model_args",
        f"pretrained={make_tiny('llama', place / 'models')},k=0",
        "--tasks",
        "kinject_perplexity",
    ]
    command += ["--metadata", json.dumps({"corpus": str(texts), "from": "2026-02"})]
    subprocess.run([*command, "--log_samples", "--output_path", str(tmp_path / "out")], check=True)
    found = reruns.rerun(next((tmp_path / "out").rglob("results_*.json")))
    assert found.lines() == ["2 samples compared: the same, to the bit"]


def test_rerun_of_a_plain_command(place, tmp_path):
    arguments = f"pretrained={make_tiny('llama', place / 'models')},retriever=bm25,k=1"
    arguments += f",corpus={place / 'corpus'}"
    own = tmp_path / "tasks"
    own.mkdir()
    theirs = tasks_dir() / "current_events" / "current_events_cloze.yaml"
    (own / "mine.yaml").write_text(f"include: {theirs}\ntask: mine\n")
    command = [sys.executable, "-m", "lm_eval_kinject", "--model", "rag-hf", "--model_args", arguments]
    command += [
        "--device",
        "cpu",
        "--include_path",
        str(own),
        "--tasks",
        "mine",
        "--limit",
        "5",
        "--log_samples",
        "--output_path",
        str(tmp_path),
    ]
    subprocess.run(command, check=True)
    results = next(tmp_path.rglob("results_*.json"))
    said = read_json(results)
    said["config"]["kinject"]["corpora"][0]["fingerprint"] = "0" * 64
    with pytest.raises(ArgumentError, match=r"tasks: mine is unknown.*include_path"):
        reruns.rerun(results)
    found = reruns.rerun(results, include_path=str(own))
    assert found.lines() == ["5 samples compared: the same, to the bit"]
    results.write_text(json.dumps(said))
    found = reruns.rerun(results, include_path=str(own))
    assert not found.same
    assert found.differences == ()
    assert found.made_from[0].startswith("corpora, 0, fingerprint: '0000")
    said["config"]["model"] = "hf"
    results.write_text(json.dumps(said))
    with pytest.raises(ArgumentError, match="no result of --model rag-hf"):
        reruns.rerun(results)
