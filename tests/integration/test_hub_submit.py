"""``kinject submit`` and ``kinject adapters`` against the test Hub."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub_fixture import TOKEN, local_hub
from helpers.hub_run import HIDDEN, make_base, make_results, make_run
from helpers.hub_run import record as record_of
from hub_server import Fault, HubServer
from huggingface_hub import constants as hub_constants

from lm_eval_kinject.errors import HubError, ModelError, PublishError
from lm_eval_kinject.hub import registry
from lm_eval_kinject.hub.adapters import add, pull, verify
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.hub.push import push_model, push_run
from lm_eval_kinject.hub.registry import resolve
from lm_eval_kinject.hub.submit import submit_results, submit_scores

TASK = "current_events_cloze"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "kinject"))
    monkeypatch.setattr(registry, "adapters_dir", lambda: tmp_path / "none")
    with local_hub(monkeypatch, tmp_path / "home") as server:
        yield server


@pytest.fixture
def run(hub: HubServer, tmp_path: Path) -> Path:
    """A run that is published as me/ft-par, on me/reader."""
    base = make_base(tmp_path / "reader")
    push_model(base, "me/reader")
    folder = make_run(tmp_path / "ft-par", base)
    push_run(folder, "me/ft-par", base="me/reader")
    return folder


def head(hub: HubServer, repo_id: str) -> str | None:
    """The commit that a model has now, if it is there."""
    repo = hub.store.repos.get(("model", repo_id))
    return repo.resolve("main").id if repo else None


@pytest.fixture
def results(hub: HubServer, tmp_path: Path) -> Path:
    """Four variants: base, RAG, adapter, both."""
    for peft, k, acc in ((None, 0, 0.25), (None, 3, 0.875), ("me/ft-par", 0, 0.5), ("me/ft-par", 3, 0.75)):
        commit = head(hub, peft or "me/reader")
        make_results(tmp_path / "out", model="me/reader", peft=peft, k=k, acc=acc, identity=commit)
    return tmp_path / "out"


def benchmark(hub: HubServer, *tasks: dict[str, str]) -> None:
    repo = hub.store.create("dataset", "other/bench", "other", private=False)
    listed = list(tasks) or [{"id": "cloze", "config": "default", "split": "test"}]
    content = {"name": "b", "description": "b", "evaluation_framework": "inspect-ai", "tasks": listed}
    head = repo.resolve("main")
    files = {**head.files, "eval.yaml": hub.store.put(yaml.safe_dump(content).encode())}
    repo.refs["refs/heads/main"] = hub.store.commit(repo, head.id, files, "bench", "other").id


# Scores to a model ----------------------------------------------------------------------------------------------------


def test_scores_to_ones_own_adapter(hub: HubServer, run: Path, results: Path) -> None:
    said: list[str] = []
    submit_scores([results], "me/ft-par", benchmarks={TASK: "other/bench#cloze"}, say=said.append)
    files = hub.store.files("me/ft-par")
    entries = {path: yaml.safe_load(data)[0] for path, data in files.items() if path.startswith(".eval_results/")}
    assert sorted(entry["value"] for entry in entries.values()) == [0.5, 0.75]
    with_rag = next(entry for entry in entries.values() if entry["value"] == 0.75)
    assert with_rag["dataset"] == {"id": "other/bench", "task_id": "cloze"}
    assert with_rag["date"] == "2026-11-21T03:47:07Z"
    assert with_rag["notes"].startswith("k=3, retriever=minilm, fusion=concat, order=relevance, placement=question")
    card = files["README.md"].decode()
    for row in (
        "base | none | 0.250",
        "RAG | k=3, minilm | 0.875",
        "this | none | 0.500",
        "this + RAG | k=3, minilm | 0.750",
    ):
        assert f"| {TASK} | acc | {row} |" in card
    assert any("leaderboards leave out repositories that declare a base_model" in line for line in said)
    head = hub.store.repos["model", "me/ft-par"].resolve("main").id
    submit_scores([results], "me/ft-par", benchmarks={TASK: "other/bench#cloze"})
    assert hub.store.repos["model", "me/ft-par"].resolve("main").id == head, "the same scores make no second commit"


def test_leaderboard_leaves_out_derived_models(hub: HubServer, run: Path, results: Path) -> None:
    from huggingface_hub import HfApi

    benchmark(hub)
    push_run(run, "me/ft-par", base="me/reader", public=True)
    submit_scores([results], "me/ft-par", benchmarks={TASK: "other/bench#cloze"})
    assert HfApi().get_dataset_leaderboard("other/bench") == []
    found = HfApi().get_dataset_leaderboard("other/bench", base_model_only=False)
    assert [(entry.model_id, entry.value) for entry in found] == [("me/ft-par", 0.75), ("me/ft-par", 0.5)]
    read = HfApi().model_info("me/ft-par", expand=["evalResults"]).eval_results
    assert sorted(entry.value for entry in read or []) == [0.5, 0.75]


def test_scores_to_somebody_elses_model_are_a_pull_request(hub: HubServer, results: Path, tmp_path: Path) -> None:
    repo = hub.store.create("model", "other/base", "other", private=False)
    card = "---\nlicense: mit\nmodel-index:\n- name: base\n  results:\n  - task:\n      type: text-generation\n"
    card += "    dataset:\n      type: a/b\n      name: ab\n    metrics:\n    - type: accuracy\n      value: 0.1\n"
    card += "      name: acc\n---\n# Theirs\n\nTheir words.\n"
    files = {"README.md": hub.store.put(card.encode())}
    repo.refs["refs/heads/main"] = hub.store.commit(repo, repo.resolve("main").id, files, "card", "other").id
    mine = make_results(
        tmp_path / "theirs", model="other/base", peft=None, k=3, acc=0.875, identity=head(hub, "other/base")
    )
    done = submit_scores([mine], "other/base", benchmarks={TASK: "other/bench#cloze"}, source="https://example.org/r")
    again = submit_scores([mine], "other/base", benchmarks={TASK: "other/bench#cloze"}, source="https://example.org/r")
    assert done.pull_request == again.pull_request == f"{hub.url}/other/base/discussions/1"
    assert hub.store.files("other/base") == {"README.md": card.encode()}
    proposed = hub.store.files("other/base", revision="refs/pr/1")
    text = proposed["README.md"].decode()
    assert "Their words." in text
    metrics = [m for r in yaml.safe_load(text.split("---")[1])["model-index"][0]["results"] for m in r["metrics"]]
    assert sorted(metric["value"] for metric in metrics) == [0.1, 0.875]
    entry = yaml.safe_load(next(data for path, data in proposed.items() if path.startswith(".eval_results/")))[0]
    assert entry["source"] == {"url": "https://example.org/r", "name": "lm_eval results", "user": "me"}


def test_another_variants_file_is_never_overwritten(hub: HubServer, run: Path, results: Path) -> None:
    submit_scores([results], "me/ft-par", benchmarks={TASK: "other/bench"})
    repo = hub.store.repos["model", "me/ft-par"]
    head = repo.resolve("main")
    path = next(p for p in head.files if p.startswith(".eval_results/"))
    entry = yaml.safe_load(hub.store.files("me/ft-par")[path])
    entry[0]["notes"] = "k=9, something else"
    changed = {**head.files, path: hub.store.put(yaml.safe_dump(entry).encode())}
    repo.refs["refs/heads/main"] = hub.store.commit(repo, head.id, changed, "x", "me").id
    with pytest.raises(PublishError, match="is of another setting"):
        submit_scores([results], "me/ft-par", benchmarks={TASK: "other/bench"})


def test_scores_of_other_weights_are_refused(hub: HubServer, run: Path, results: Path, tmp_path: Path) -> None:
    push_run(make_run(tmp_path / "new/ft-par", tmp_path / "reader", seed=7), "me/ft-par", base="me/reader")
    before = head(hub, "me/ft-par")
    with pytest.raises(
        PublishError, match=r"and its weights at [0-9a-f]{12} are others .*Score the model as it is now"
    ):
        submit_scores([results], "me/ft-par")
    gone = make_results(tmp_path / "gone", model="me/reader", peft="me/ft-par", k=0)
    with pytest.raises(PublishError, match="of me/ft-par at cccccccccccc"):
        submit_scores([gone], "me/ft-par")
    with pytest.raises(PublishError, match="has other weights than this run"):
        push_run(tmp_path / "new/ft-par", "me/ft-par", base="me/reader", results=[results])
    assert head(hub, "me/ft-par") == before


def test_a_dataset_that_is_a_benchmark_is_found(hub: HubServer, run: Path, tmp_path: Path) -> None:
    benchmark(hub)
    file = make_results(tmp_path / "out", model="me/reader", peft="me/ft-par", k=0, identity=head(hub, "me/ft-par"))
    data = json.loads(file.read_text())
    data["configs"][TASK]["dataset_path"] = "other/bench"
    file.write_text(json.dumps(data))
    submit_scores([file], "me/ft-par")
    names = [path for path in hub.store.files("me/ft-par") if path.startswith(".eval_results/")]
    assert len(names) == 1


def found_benchmarks(hub: HubServer, tmp_path: Path, said: list[str]) -> list[str]:
    """The task ids that a score on other/bench is submitted under."""
    file = make_results(tmp_path / "out", model="me/reader", peft="me/ft-par", k=0, identity=head(hub, "me/ft-par"))
    data = json.loads(file.read_text())
    data["configs"][TASK]["dataset_path"] = "other/bench"
    file.write_text(json.dumps(data))
    submit_scores([file], "me/ft-par", say=said.append)
    files = hub.store.files("me/ft-par")
    return [yaml.safe_load(data)[0]["dataset"]["task_id"] for path, data in files.items() if path.startswith(".eval_r")]


def test_a_benchmarks_task_is_of_the_same_split(hub: HubServer, run: Path, tmp_path: Path) -> None:
    benchmark(hub, {"id": "dev", "split": "validation"}, {"id": "cloze", "split": "test"})
    assert found_benchmarks(hub, tmp_path, []) == ["cloze"]


def test_of_several_tasks_of_a_split_none_is_guessed(hub: HubServer, run: Path, tmp_path: Path) -> None:
    benchmark(hub, {"id": "one"}, {"id": "two"})
    said: list[str] = []
    assert found_benchmarks(hub, tmp_path, said) == []
    assert any("several tasks of its split (one, two); say which with --benchmark" in line for line in said)


def test_of_several_tasks_of_a_split_the_one_of_the_same_name_counts(hub: HubServer, run: Path, tmp_path: Path) -> None:
    benchmark(hub, {"id": "one"}, {"id": TASK})
    assert found_benchmarks(hub, tmp_path, []) == [TASK]


def test_a_benchmark_of_what_was_not_scored_is_refused(hub: HubServer, run: Path, results: Path) -> None:
    with pytest.raises(PublishError, match="A benchmark was named for mmlu, of which there is no score"):
        submit_scores([results], "me/ft-par", benchmarks={"mmlu": "cais/mmlu"})


# Who may write --------------------------------------------------------------------------------------------------------

DIRECT = "POST .*/commit/main"


@pytest.fixture
def org(hub: HubServer, results: Path, tmp_path: Path) -> Path:
    """A model of an organisation that one is a member of, and results of it."""
    hub.store.orgs["lab"] = {"me", "other"}
    hub.store.create("model", "lab/base", "other", private=False)
    return make_results(tmp_path / "lab", model="lab/base", peft=None, k=3, identity=head(hub, "lab/base"))


def test_a_member_who_may_write_commits(hub: HubServer, org: Path) -> None:
    assert submit_scores([org], "lab/base").pull_request is None
    assert "README.md" in hub.store.files("lab/base")


def test_a_member_who_only_reads_opens_a_pull_request(hub: HubServer, org: Path) -> None:
    said: list[str] = []
    with hub.trouble(Fault(403, DIRECT)):
        done = submit_scores([org], "lab/base", say=said.append)
    assert done.pull_request == f"{hub.url}/lab/base/discussions/1"
    assert "you may not commit to lab/base: opening a pull request instead" in said
    assert "README.md" not in hub.store.files("lab/base")


def test_whom_the_hub_calls_a_reader_is_not_tried(hub: HubServer, org: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orgs = [{"name": "lab", "roleInOrg": "read"}]
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "me", "orgs": orgs})
    with hub.trouble() as plan:
        done = submit_scores([org], "lab/base")
    assert done.pull_request
    assert len([line for line in plan.seen if "/commit/" in line]) == 1


def test_a_pull_request_can_be_asked_for(hub: HubServer, org: Path) -> None:
    assert submit_scores([org], "lab/base", pull_request=True).pull_request
    hub.store.create("dataset", "lab/results", "other", private=False)
    assert submit_results([org], "lab/results", pull_request=True).pull_request
    assert set(hub.store.files("lab/results", "dataset")) == {".gitattributes"}


def test_a_direct_commit_that_was_asked_for_is_no_pull_request(hub: HubServer, org: Path) -> None:
    with hub.trouble(Fault(403, DIRECT)), pytest.raises(HubError, match="open a pull request instead"):
        submit_scores([org], "lab/base", pull_request=False)
    with hub.trouble(Fault(403, "POST /api/repos/create")), pytest.raises(HubError, match="the Hub answered 403"):
        submit_results([org], "lab/none")  # there is nothing to open one to
    assert not hub.store.repos["model", "lab/base"].discussions


def broken(file: Path, **changes: Any) -> Path:
    data = json.loads(file.read_text())
    for key, value in changes.items():
        place = data
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"config__kinject": None}, "config.kinject: score with --model rag-hf"),
        ({"config__kinject__corpora": None}, "kinject.corpora: which corpus was searched"),
        (
            {"config__kinject__model": {"name": "reader", "fingerprint": "f" * 64}},
            "kinject.model.commit: reader has none",
        ),
        ({"lm_eval_version": None}, "lm_eval_version: written by lm_eval"),
        ({"n-samples": {TASK: {"original": 910, "effective": 8}}}, "it was run with --limit"),
        ({"config__kinject__prompt": {"query": "question"}}, "kinject.prompt.fusion"),
    ],
)
def test_incomplete_provenance_is_refused(
    hub: HubServer, run: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    file = broken(make_results(tmp_path / "out", model="me/reader", peft="me/ft-par", k=3), **changes)
    for call in (lambda: submit_scores([file], "me/ft-par"), lambda: submit_results([file], "me/results")):
        with pytest.raises(PublishError) as caught:
            call()
        assert text in str(caught.value)
    assert ("dataset", "me/results") not in hub.store.repos


# Results to a data set ------------------------------------------------------------------------------------------------


def configs(hub: HubServer) -> dict[str, list[str]]:
    card = hub.store.files("me/results", "dataset")["README.md"].decode()
    listed = yaml.safe_load(card.split("---")[1])["configs"]
    return {c["config_name"]: [f["split"] for f in c["data_files"]] for c in listed}


def test_results_have_one_name_a_variant(hub: HubServer, results: Path) -> None:
    said: list[str] = []
    submit_results([results], "me/results", say=said.append)
    folders = {path.split("/")[0] for path in hub.store.files("me/results", "dataset") if "/" in path}
    assert len(folders) == 4
    assert {name.rpartition("-")[0] for name in folders} == {
        "me__reader__k0", "me__reader__k3-minilm", "me__ft-par__k0", "me__ft-par__k3-minilm",
    }  # fmt: skip
    found = configs(hub)
    assert set(found) == {f"{name}__{what}" for name in folders for what in ("results", TASK)}
    assert all(splits == ["2026_11_21T03_47_15.685500", "latest"] for n, splits in found.items() if "__k0" in n)
    files = hub.store.files("me/results", "dataset")
    text = b"".join(files.values()).decode()
    assert "/home/me" not in text, "lm_eval's config_source names a place on the disk"
    assert TOKEN not in text
    head = hub.store.repos["dataset", "me/results"].resolve("main").id
    submit_results([results], "me/results")
    assert hub.store.repos["dataset", "me/results"].resolve("main").id == head


def test_results_alone_and_later_ones(hub: HubServer, results: Path, tmp_path: Path) -> None:
    first, *rest = sorted(results.rglob("results_*.json"))
    submit_results([first], "me/results", samples=False)
    assert [name for name in configs(hub) if not name.endswith("__results")] == []
    submit_results(rest, "me/results")
    assert len(configs(hub)) == 1 + 2 * len(rest)


def test_submissions_at_the_same_time_both_stay(hub: HubServer, results: Path) -> None:
    first, second, *_ = sorted(results.rglob("results_*.json"))
    submit_results([first], "me/results")
    third = sorted(results.rglob("results_*.json"))[2]

    def meanwhile() -> None:
        hub.plan.faults = []
        submit_results([third], "me/results")

    # The server holds no lock while a fault strikes, so the other submission goes through in between.
    with hub.trouble(Fault(412, "POST .*/commit/", then=meanwhile)):
        submit_results([second], "me/results")
    assert len(configs(hub)) == 6


def test_samples_are_required(hub: HubServer, results: Path) -> None:
    for file in results.rglob("samples_*"):
        file.unlink()
    with pytest.raises(PublishError, match=r"the samples of current_events_cloze: run with --log_samples"):
        submit_results([results], "me/results")


def test_places_on_this_disk_are_refused(hub: HubServer, tmp_path: Path) -> None:
    file = make_results(tmp_path / "out", model="me/reader", peft=None, k=3)
    broken(file, config__model_args={"pretrained": "me/reader", "corpus": "/home/ann/corpus", "k": 3})
    with pytest.raises(PublishError, match=r"config\.model_args\.corpus: /home/ann/corpus"):
        submit_results([file], "me/results")


def test_failed_uploads_are_errors(hub: HubServer, results: Path) -> None:
    with hub.trouble(Fault(403, "POST .*/commit/", times=-1)), pytest.raises(HubError, match=r"open a pull request"):
        submit_results([results], "me/results")
    with hub.trouble(Fault(500, "POST .*/commit/", times=2)):
        submit_results([results], "me/results")
    assert len(configs(hub)) == 8


CARELESS = "what is {authorization}?"


@pytest.mark.parametrize("request_", ["POST .*/commit/", "POST .*/preupload/", "GET .*/api/"])
def test_no_token_where_a_server_repeats_it(
    hub: HubServer, run: Path, results: Path, request_: str, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = {
        "scores": lambda said: submit_scores([results], "me/ft-par", say=said.append),
        "results": lambda said: submit_results([results], "me/results", say=said.append),
    }
    for call in calls.values():
        said: list[str] = []
        with hub.trouble(Fault(400, request_, times=-1, message=CARELESS)), pytest.raises(HubError) as caught:
            call(said)
        text = "".join([*traceback.format_exception(caught.value), *said, *capfd.readouterr()])
        assert "<token>" in text
        assert TOKEN not in text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_token_where_a_server_repeats_it_to_a_download(
    hub: HubServer, run: Path, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    add("me/ft-par")
    calls: list[Callable[[], object]] = [
        lambda: fetch_snapshot("me/reader", kind="model", error=ModelError),
        lambda: pull("ft-par"),
    ]
    shutil.rmtree(hub_constants.HF_HUB_CACHE)
    for call in calls:
        with hub.trouble(Fault(status, "GET ", times=-1, message=CARELESS)), pytest.raises(ModelError) as caught:
            call()
        text = "".join([*traceback.format_exception(caught.value), *capfd.readouterr()])
        assert TOKEN not in text


def test_datasets_reads_the_row_back(hub: HubServer, results: Path, tmp_path: Path) -> None:
    """With the unmodified library, in a process of its own."""
    import os
    import subprocess
    import sys

    said: list[str] = []
    submit_results([results], "me/results", say=said.append)
    call = next(line for line in said if "me__ft-par__k3" in line)
    program = f"import datasets; row = {call}[0]; print('ACC', row['results']['{TASK}']['acc,none'])"
    environment = {**os.environ, **hub.environment(tmp_path / "fresh", TOKEN)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert "ACC 0.75" in done.stdout, done.stderr


# Adapters -------------------------------------------------------------------------------------------------------------


def test_add_resolve_and_verify(hub: HubServer, run: Path, results: Path) -> None:
    submit_scores([results], "me/ft-par")
    file = add("me/ft-par")
    commit = hub.store.repos["model", "me/ft-par"].resolve("main").id
    record = yaml.safe_load(file.read_text())
    assert (record["name"], record["repo"], record["revision"]) == ("ft-par", "me/ft-par", commit)
    assert record["base"]["name"] == "me/reader"
    assert [(s["k"], s["value"]) for s in record["scores"]] == [(0, 0.5), (3, 0.75)]
    found = resolve("ft-par")
    assert (found.repo, found.revision, found.base) == ("me/ft-par", commit, "me/reader")
    assert (found.path / "adapter_model.safetensors").read_bytes() == (run / "adapter_model.safetensors").read_bytes()
    assert not (found.path / "README.md").exists(), "only what the record lists is fetched"
    said: list[str] = []
    verify("ft-par", say=said.append)
    assert "every tensor fits me/reader" in said
    assert add("me/ft-par") == file  # the same again


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"licence": "mit"}, "licence is 'mit' in the record, 'apache-2.0' in"),
        ({"variant": "ft-reg"}, "variant is 'ft-reg' in the record, 'ft-par' in"),
        ({"base": {"name": "me/reader", "revision": "0" * 40}}, "base.revision is '0000000000"),
        ({"base": {"name": "me/reader", "revision": "0" * 40}}, "adapter_config.json is for revision "),
        ({"corpus__revision": "another edition"}, "corpus.revision is 'another edition' in the record, 'newswire"),
        ({"scores__1__value": 0.875}, r"the score current_events_cloze acc 0.875 \(k=3, n=8\) is not in kinject"),
        ({"scores__0__k": 1}, r"the score current_events_cloze acc 0.5 \(k=1, n=8\) is not in kinject"),
    ],
)
def test_a_record_that_says_something_else_than_the_run(
    hub: HubServer, run: Path, results: Path, changes: dict[str, Any], text: str
) -> None:
    submit_scores([results], "me/ft-par")
    file = add("me/ft-par")
    record = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        place: Any = record
        *parents, last = key.split("__")
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[last] = value
    file.write_text(yaml.safe_dump(record))
    with pytest.raises(ModelError, match=text):
        verify("ft-par")


def test_a_record_may_leave_out_licence_and_scores(hub: HubServer, run: Path, results: Path) -> None:
    submit_scores([results], "me/ft-par")
    file = add("me/ft-par")
    record = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**record, "scores": record["scores"][:1], "licence": None}))
    verify("ft-par")


def test_a_whole_model_is_checked_against_its_run_too(hub: HubServer, run: Path, tmp_path: Path) -> None:
    whole = make_base(tmp_path / "ft-full", seed=3)
    data = record_of(tmp_path / "reader")
    data["recipe"] |= {"method": "full"}
    (whole / "kinject.json").write_text(json.dumps(data))
    push_run(whole, "me/ft-full", base="me/reader")
    file = add("me/ft-full")
    assert verify("ft-full").adapter is False
    file.write_text(file.read_text().replace("name: me/reader", "name: me/other"))
    with pytest.raises(ModelError, match=r"base\.name is 'me/other' in the record, 'me/reader' in kinject\.json"):
        verify("ft-full")


def test_a_record_is_written_last(hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wide = make_run(tmp_path / "wide", tmp_path / "reader", width=HIDDEN + 1)
    push_run(wide, "me/wide", base="me/reader")
    written: list[object] = []
    monkeypatch.setattr("lm_eval_kinject.hub.adapters._write", lambda file, record: written.append(file))
    for folder in (None, Path("mine")):  # a registry of one's own, by a relative path
        with pytest.raises(ModelError, match="doesn't fit the base's"):
            add("me/wide", folder=folder)
    assert written == []
    add("me/ft-par", folder=Path("mine"))
    assert written == [Path("mine/ft-par.yaml")]


def test_the_pinned_revision_stays(hub: HubServer, run: Path, tmp_path: Path) -> None:
    add("me/ft-par")
    before = resolve("ft-par")
    push_run(make_run(tmp_path / "new/ft-par", tmp_path / "reader", seed=7), "me/ft-par", base="me/reader")
    assert resolve("ft-par").path == before.path
    assert verify("ft-par").revision == before.revision


def test_a_revision_that_is_gone(hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = add("me/ft-par")
    file.write_text(file.read_text().replace(yaml.safe_load(file.read_text())["revision"], "d" * 40))
    with pytest.raises(ModelError, match="the repository was rewritten"):
        verify("ft-par")
    with pytest.raises(ModelError, match="has no revision"):
        pull("ft-par")


def upload(hub: HubServer, repo_id: str, path: str, data: bytes) -> None:
    repo = hub.store.repos["model", repo_id]
    head = repo.resolve("main")
    files = {**head.files, path: hub.store.put(data, lfs=True)}
    repo.lfs.add(files[path].sha256)
    repo.refs["refs/heads/main"] = hub.store.commit(repo, head.id, files, "x", "me").id


def test_a_repository_with_a_pickle_is_refused(hub: HubServer, run: Path) -> None:
    upload(hub, "me/ft-par", "extra/thing.bin", b"\x80\x04")
    with pytest.raises(ModelError, match=r"extra/thing\.bin, which is pickled"):
        add("me/ft-par")


def test_a_repository_without_a_record_of_its_making_is_refused(hub: HubServer, run: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no kinject\.json"):
        add("me/reader")


def test_an_adapter_for_another_base_is_refused(hub: HubServer, run: Path, tmp_path: Path) -> None:
    wide = make_run(tmp_path / "wide", tmp_path / "reader", width=HIDDEN + 1)
    push_run(wide, "me/wide", base="me/reader")
    with pytest.raises(ModelError, match="doesn't fit the base's"):
        add("me/wide")
    assert registry.records() == {}


def test_without_a_network_the_cache_serves(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("me/ft-par")
    before = resolve("ft-par")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("ft-par") == before
