"""``kinject push`` against the test Hub: what arrives, what is refused, and what trouble leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.hub_fixture import TOKEN, local_hub
from helpers.hub_run import make_base, make_results, make_run, record
from hub_server import Fault, HubServer

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError, HubError, KinjectError, PublishError
from lm_eval_kinject.hub.content import fingerprint_model
from lm_eval_kinject.hub.publish import Plan, Published
from lm_eval_kinject.hub.push import push_dataset, push_model, push_run, push_space
from lm_eval_kinject.models.results import model_identity
from lm_eval_kinject.pages.space import export_space
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import fingerprint_file

LARGE = 300_000  # bytes from which the test Hub asks for parts


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path / "home", multipart_from=LARGE, part_size=LARGE // 2) as server:
        yield server


@pytest.fixture
def base(tmp_path: Path, hub: HubServer) -> Path:
    folder = make_base(tmp_path / "reader")
    push_model(folder, "me/reader")
    return folder


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    return make_run(tmp_path / "ft-par", base)


def push(run: Path, **options: object) -> Published:
    done = push_run(run, "me/ft-par", base="me/reader", **options)  # type: ignore[arg-type]
    assert isinstance(done, Published)
    return done


# What arrives ---------------------------------------------------------------------------------------------------------


def test_a_run_arrives_as_one_commit(hub: HubServer, run: Path) -> None:
    done = push(run)
    repo = hub.store.repos["model", "me/ft-par"]
    assert repo.private
    assert [c.title for c in repo.history(repo.resolve("main"))] == [
        "Publish ft-par (lora) on current_events",
        "initial commit",
    ]
    files = hub.store.files("me/ft-par")
    # The tokenizer is the base's, so it stays; so does what nobody asked for.
    assert sorted(files) == [
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "kinject.json", "log.jsonl",
        "loss.png", "recipe.yaml",
    ]  # fmt: skip
    assert files["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/reader"
    assert config["revision"] == hub.store.repos["model", "me/reader"].resolve("main").id
    assert done.commit == repo.resolve("main").id
    assert "PlantedToken" not in repr(files)


def test_a_second_push_sends_nothing(hub: HubServer, run: Path) -> None:
    first = push(run)
    with hub.trouble() as plan:
        second = push(run)
    assert (second.sent, second.removed, second.commit) == ((), (), first.commit)
    assert not [line for line in plan.seen if line.startswith(("PUT", "POST"))]


def test_a_changed_run_replaces_what_changed_and_removes_what_is_gone(hub: HubServer, run: Path, base: Path) -> None:
    push(run)
    repo = hub.store.repos["model", "me/ft-par"]
    shutil.rmtree(run)
    make_run(run, base, seed=2)
    (run / "loss.png").unlink()
    done = push(run)
    assert done.removed == ("loss.png",)
    assert done.sent == ("README.md", "adapter_model.safetensors", "kinject.json")
    assert len(repo.history(repo.resolve("main"))) == 3


def test_dry_run_lists_all_and_changes_nothing(hub: HubServer, run: Path) -> None:
    before = set(hub.store.repos)
    found = push_run(run, "me/ft-par", base="me/reader", dry_run=True)
    assert isinstance(found, Plan)
    assert set(hub.store.repos) == before
    lines = "\n".join(found.lines())
    size = (run / "adapter_model.safetensors").stat().st_size
    assert f"  + adapter_model.safetensors  {f'{size / 1000:.1f} kB':>10}" in lines
    assert "model me/ft-par (new, private)" in lines
    assert "tokenizer.json  (stays here)" in lines
    assert found.lines()[-1].startswith("7 files to send, ")


def test_dry_run_of_a_pull_request_is_what_the_pull_request_does(hub: HubServer, run: Path) -> None:
    hub.store.create("model", "other/ft-par", "other", private=False)

    def to_other(dry_run: bool) -> Published | Plan:
        return push_run(run, "other/ft-par", base="me/reader", pull_request=True, dry_run=dry_run)

    planned, done = to_other(True), to_other(False)
    assert isinstance(planned, Plan)
    assert isinstance(done, Published)
    assert tuple(planned.sizes) == done.sent
    (run / "loss.png").unlink()
    again = to_other(True)
    assert isinstance(again, Plan)
    assert (again.add, again.replace, again.remove) == ((), ("README.md", "kinject.json"), ())
    assert again.lines()[0] == "model other/ft-par (a pull request)"
    with pytest.raises(HubError, match=r"There is no model other/nothing to open a pull request to"):
        push_run(run, "other/nothing", base="me/reader", pull_request=True, dry_run=True)


def test_models_and_data_as_pull_requests(hub: HubServer, base: Path, tmp_path: Path) -> None:
    hub.store.create("model", "other/base", "other", private=False)
    done = push_model(base, "other/base", pull_request=True)
    assert isinstance(done, Published)
    assert done.pull_request == f"{hub.url}/other/base/discussions/1"
    assert set(hub.store.files("other/base")) == {".gitattributes"}


def test_dry_run_says_public(hub: HubServer, run: Path) -> None:
    found = push_run(run, "me/ft-par", base="me/reader", public=True, dry_run=True)
    assert isinstance(found, Plan)
    assert found.lines()[0] == "model me/ft-par (new, public)"


def test_a_base_is_known_by_its_weights_settings_and_tokenizer(hub: HubServer, run: Path, base: Path) -> None:
    (base / "notes.txt").write_text("stays here, as push leaves it behind")
    data = json.loads((run / "kinject.json").read_text())
    data["base"]["identity"] = fingerprint_model(base)
    (run / "kinject.json").write_text(json.dumps(data))
    push(run)


def write_corpus(folder: Path, *, paraphrase: str = "Again, one.") -> Path:
    """A local corpus: two chunks, a paraphrase of each, a validation text of each."""
    folder.mkdir(parents=True)
    rows = {
        "chunks": [{"id": "a", "text": "One."}, {"id": "b", "text": "Two."}],
        "paraphrases": [{"chunk": c, "number": 1, "text": paraphrase} for c in "ab"],
        "validation": [{"chunk": c, "number": 1, "text": "Once more."} for c in "ab"],
    }
    for name, table in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder


def on_local_corpus(run: Path, corpus: Path, *, model: str, name: str) -> None:
    """Makes a run one on a local base and corpus, as the trainer tells of it: their last names, and fingerprints."""
    data = json.loads((run / "kinject.json").read_text())
    data["recipe"] |= {"model": model, "model_revision": None, "corpus": name, "corpus_revision": None}
    found = load_corpus(str(corpus)).provenance()
    beside = {stem: fingerprint_file(corpus / f"{stem}.jsonl") for stem in ("paraphrases", "validation")}
    data["corpus"] = {**found, "name": name, **beside}
    (run / "kinject.json").write_text(json.dumps(data))


@pytest.mark.parametrize("here", [False, True])
def test_a_published_recipe_names_what_was_local_as_the_hub_has_it(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    corpus = write_corpus(tmp_path / "my-corpus")
    push_dataset(corpus, "me/corpus")
    on_local_corpus(run, corpus, model="reader", name="my-corpus")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path if here else tmp_path / "elsewhere")  # the folder reader is, or isn't, in this one
    push(run, corpus="me/corpus")
    files = hub.store.files("me/ft-par")
    commits = {
        "model_revision": hub.store.repos["model", "me/reader"].resolve("main").id,
        "corpus_revision": hub.store.repos["dataset", "me/corpus"].resolve("main").id,
    }
    record = json.loads(files["kinject.json"])
    for recipe in (yaml.safe_load(files["recipe.yaml"]), record["recipe"]):
        assert {key: recipe[key] for key in ("model", "corpus")} == {"model": "me/reader", "corpus": "me/corpus"}
        assert {key: recipe[key] for key in commits} == commits
    assert record["recipe"]["name"] == "reader-ft-par"
    assert record["base"]["trained_on"]["name"] == "reader", "results speak of the base by this name"


def test_a_published_recipe_keeps_what_others_can_get(hub: HubServer, run: Path) -> None:
    data = json.loads((run / "kinject.json").read_text())
    commit = hub.store.repos["model", "me/reader"].resolve("main").id
    data["recipe"] |= {"model": "me/reader", "model_revision": None}
    data["base"] = {"name": "me/reader", "identity": commit}
    (run / "kinject.json").write_text(json.dumps(data))
    push(run)
    recipe = yaml.safe_load(hub.store.files("me/ft-par")["recipe.yaml"])
    assert (recipe["model"], recipe["model_revision"], recipe["corpus"]) == ("me/reader", None, "current_events")


def test_a_changed_tokenizer_goes_along(hub: HubServer, run: Path) -> None:
    (run / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    push(run)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(hub.store.files("me/ft-par"))


def test_a_whole_model_arrives_with_its_tokenizer(hub: HubServer, base: Path, tmp_path: Path) -> None:
    run = make_base(tmp_path / "ft-reg", seed=4)
    data = record(base)
    data["recipe"] |= {"method": "full", "variant": "ft-reg", "paraphrases": None}
    (run / "kinject.json").write_text(json.dumps(data))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/ann/reader"}))
    push_run(run, "me/ft-reg", base="me/reader")
    files = hub.store.files("me/ft-reg")
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert json.loads(files["config.json"])["_name_or_path"] == "me/reader"
    assert b"base_model_relation: finetune" in files["README.md"]
    assert push_run(run, "me/ft-reg", base="me/reader").sent == ()


def test_public_opens_the_repository_after_the_content_is_there(hub: HubServer, run: Path) -> None:
    with hub.trouble() as plan:
        push(run, public=True)
    assert not hub.store.repos["model", "me/ft-par"].private
    order = [line for line in plan.seen if "/commit/" in line or line.startswith("PUT /api")]
    assert order == ["POST /api/models/me/ft-par/commit/main", "PUT /api/models/me/ft-par/settings"]


def test_a_pull_request_to_somebody_elses_repository_is_opened_once(hub: HubServer, run: Path, base: Path) -> None:
    hub.store.create("model", "other/ft-par", "other", private=False)

    def to_other() -> Published:
        done = push_run(run, "other/ft-par", base="me/reader", pull_request=True)
        assert isinstance(done, Published)
        return done

    first, second = to_other(), to_other()
    assert first.pull_request == second.pull_request == f"{hub.url}/other/ft-par/discussions/1"
    assert second.sent == ()
    (run / "loss.png").write_bytes((run / "loss.png").read_bytes() + b"\n")
    assert to_other().sent == ("loss.png",)
    repo = hub.store.repos["model", "other/ft-par"]
    assert len(repo.discussions) == 1
    assert set(hub.store.files("other/ft-par")) == {".gitattributes"}
    assert "adapter_model.safetensors" in hub.store.files("other/ft-par", revision="refs/pr/1")


def identity(run: Path) -> str:
    """The folder's fingerprint as results have it."""
    return str(model_identity(str(run), commit=None, revision=None)["fingerprint"])


def test_results_of_what_the_folder_held_before_are_refused(
    hub: HubServer, run: Path, base: Path, tmp_path: Path
) -> None:
    results = make_results(tmp_path / "out", model="reader", peft="ft-par", k=3, identity=identity(run))
    shutil.rmtree(run)
    make_run(run, base, seed=5)
    refused(
        PublishError,
        "These results are not of what the folder ft-par holds now: current_events",
        run,
        results=[results],
    )


def test_scores_stay_while_the_weights_do(hub: HubServer, run: Path, base: Path, tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", model="reader", peft="ft-par", k=3, identity=identity(run))
    push(run, results=[results])
    card = hub.store.files("me/ft-par")["README.md"].decode()
    assert "| current_events_cloze | acc | this + RAG | k=3, minilm | 0.500 | 0.215–0.785 | 8 |" in card
    push(run)  # without the results
    assert hub.store.files("me/ft-par")["README.md"].decode() == card
    shutil.rmtree(run)
    push(make_run(run, base, seed=5))  # other weights: the old scores aren't theirs
    assert "this + RAG | k=3" not in hub.store.files("me/ft-par")["README.md"].decode()


def test_results_on_a_benchmark_become_eval_results(hub: HubServer, run: Path, tmp_path: Path) -> None:
    for k in (0, 3):
        make_results(tmp_path / "out", model="reader", peft="ft-par", k=k, identity=identity(run))
    push(run, results=[tmp_path / "out"], benchmarks={"current_events_cloze": "me/questions#cloze"})
    names = [path for path in hub.store.files("me/ft-par") if path.startswith(".eval_results/")]
    assert len(names) == 2  # a file a variant
    assert hub.store.repos["model", "me/ft-par"]


def test_question_sets(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "q/data").mkdir(parents=True)
    (tmp_path / "q/corpus").mkdir()
    for name in ("data/test", "data/dev", "corpus/chunks"):
        (tmp_path / f"q/{name}.jsonl").write_text(json.dumps({"id": "1", "text": "a"}) + "\n")
    (tmp_path / "q/dataset.py").write_text("print('no code goes to the Hub')")
    said: list[str] = []
    push_dataset(tmp_path / "q", "me/questions", say=said.append)
    files = hub.store.files("me/questions", "dataset")
    assert sorted(files) == [".gitattributes", "README.md", "corpus/chunks.jsonl", "data/dev.jsonl", "data/test.jsonl"]
    assert any("No eval.yaml was written" in line and "lm-evaluation-harness" in line for line in said)
    push_dataset(tmp_path / "q", "me/questions", framework="inspect-ai")
    assert "eval.yaml" in hub.store.files("me/questions", "dataset")


# What is refused ------------------------------------------------------------------------------------------------------


def refused(error: type[KinjectError], text: str, run: Path, **options: object) -> None:
    arguments = {"base": "me/reader", **options}
    with pytest.raises(error) as caught:
        push_run(run, "me/ft-par", **arguments)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_leaderboard_becomes_a_space(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    export_space("me/results", folder)
    (folder / "secret.env").write_text("stays here")
    done = push_space(folder, "me/board")
    assert isinstance(done, Published)
    assert (done.url, done.sent) == (f"{hub.url}/spaces/me/board", ("README.md", "app.py", "requirements.txt"))
    files = hub.store.files("me/board", "space")
    assert {name: files[name] for name in done.sent} == {name: (folder / name).read_bytes() for name in done.sent}
    assert ("model", "me/board") not in hub.store.repos
    again = push_space(folder, "me/board")
    assert isinstance(again, Published)
    assert again.sent == ()


def test_what_is_no_leaderboards_space_is_refused(tmp_path: Path) -> None:
    export_space("me/results", folder := tmp_path / "board")
    (folder / "app.py").write_text(f"leaderboard({str(Path.home() / 'results')!r})")
    with pytest.raises(PublishError, match=r"app\.py: names the local path"):
        push_space(folder, "me/board")
    (folder / "README.md").write_text("---\nsdk: static\n---\n")
    with pytest.raises(PublishError, match=r"its README\.md says sdk: static, and not gradio"):
        push_space(folder, "me/board")
    (folder / "app.py").unlink()
    with pytest.raises(PublishError, match=r"it has no app\.py: write it with `kinject leaderboard"):
        push_space(folder, "me/board")


def test_pickles_are_refused(hub: HubServer, run: Path) -> None:
    (run / "adapter_model.bin").write_bytes(b"\x80\x04")
    refused(PublishError, "adapter_model.bin is pickled", run)
    (run / "adapter_model.bin").unlink()
    (run / "log.jsonl").write_bytes(b"\x80\x04\x95")
    refused(PublishError, "log.jsonl is pickled", run)
    (run / "log.jsonl").unlink()
    (run / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95 not safetensors at all")
    refused(PublishError, "no safetensors file, whatever its name says", run)
    assert ("model", "me/ft-par") not in hub.store.repos


def test_a_truncated_weights_file_is_refused(run: Path) -> None:
    file = run / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused(PublishError, "it is incomplete", run)


def test_local_paths_and_tokens_are_refused_all_at_once(run: Path) -> None:
    data = json.loads((run / "kinject.json").read_text())
    data["note"] = "read from /home/ann/corpora/events.jsonl"
    (run / "kinject.json").write_text(json.dumps(data))
    (run / "log.jsonl").write_text(f'{{"update": 1}}\n{{"update": 2, "note": "{TOKEN}"}}\n')
    refused(PublishError, "kinject.json: names the local path /home/ann/corpora/events.jsonl", run)
    refused(PublishError, "log.jsonl, line 2: holds an access token", run)


def test_a_local_base_must_be_pushed_first(run: Path) -> None:
    refused(PublishError, "The base of this run, reader, is local", run, base=None)
    refused(PublishError, f"kinject push {assets_dir() / 'reader'} --as model", run, base=None)
    refused(PublishError, "is not on the Hub", run, base="me/nowhere")


def test_another_base_than_was_trained_on_is_refused(hub: HubServer, run: Path, tmp_path: Path) -> None:
    push_model(make_base(tmp_path / "other", seed=9), "me/other")
    refused(PublishError, "is not what this run was trained on", run, base="me/other")
    push(run, check_base=False)


def put_card(hub: HubServer, repo_id: str, metadata: str) -> str:
    """Gives a model a card with these metadata; returns the commit."""
    repo = hub.store.repos["model", repo_id]
    head = repo.resolve("main")
    files = {**head.files, "README.md": hub.store.put(f"---\n{metadata}\n---\n# A base\n".encode())}
    made = hub.store.commit(repo, head.id, files, "card", "me")
    repo.refs["refs/heads/main"] = made.id
    return made.id


def test_a_licence_of_another_name_is_carried_over(hub: HubServer, run: Path) -> None:
    commit = put_card(hub, "me/reader", "license: other\nlicense_name: reader-licence\nlicense_link: LICENSE")
    push(run)
    text = hub.store.files("me/ft-par")["README.md"].decode()
    card = yaml.safe_load(text.split("---")[1])
    link = f"https://huggingface.co/me/reader/blob/{commit}/LICENSE"
    assert (card["license"], card["license_name"], card["license_link"]) == ("other", "reader-licence", link)
    assert f"| Licence of these weights | reader-licence ([text]({link})) |" in text
    push(run, licence="mit")
    card = yaml.safe_load(hub.store.files("me/ft-par")["README.md"].decode().split("---")[1])
    assert card["license"] == "mit"
    assert not {"license_name", "license_link"} & set(card)


def test_a_licence_without_a_name_is_refused_before_anything_is_made(hub: HubServer, run: Path) -> None:
    put_card(hub, "me/reader", "license: other")
    refused(PublishError, "name the licence with --licence", run, dry_run=True)
    refused(PublishError, "The licence `other` has no name", run)
    assert ("model", "me/ft-par") not in hub.store.repos


def test_a_dry_run_finds_a_card_that_the_hub_refuses(hub: HubServer, base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: nonsense\n---\n# A base\n")
    with pytest.raises(PublishError, match=r"The Hub refuses the card: .*licen"):
        push_model(base, "me/other", dry_run=True)


def test_a_local_corpus_must_be_pushed_first(run: Path) -> None:
    data = json.loads((run / "kinject.json").read_text())
    data["corpus"]["source"] = "files in events"
    (run / "kinject.json").write_text(json.dumps(data))
    refused(PublishError, "The corpus of this run, current_events, is local", run)


def test_another_corpus_than_was_trained_on_is_refused(hub: HubServer, run: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "my-corpus")
    on_local_corpus(run, corpus, model="reader", name="my-corpus")
    push_dataset(write_corpus(tmp_path / "other", paraphrase="Another wording."), "me/other")
    refused(PublishError, "it has another paraphrases.jsonl (fingerprint ", run, corpus="me/other")
    (tmp_path / "other/paraphrases.jsonl").unlink()
    (tmp_path / "other/validation.jsonl").unlink()
    push_dataset(tmp_path / "other", "me/other")
    refused(PublishError, "it has no paraphrases, no validation set. Push that very corpus", run, corpus="me/other")
    (tmp_path / "other/chunks.jsonl").write_text('{"id": "a", "text": "Three."}\n')
    push_dataset(tmp_path / "other", "me/other")
    refused(PublishError, "it has other chunks (fingerprint ", run, corpus="me/other")
    push_dataset(corpus, "me/corpus")
    push(run, corpus="me/corpus")


def test_a_run_without_paraphrases_needs_none(hub: HubServer, run: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "my-corpus")
    on_local_corpus(run, corpus, model="reader", name="my-corpus")
    data = json.loads((run / "kinject.json").read_text())
    data["corpus"] |= {"paraphrases": None, "validation": None}
    (run / "kinject.json").write_text(json.dumps(data))
    for stem in ("paraphrases", "validation"):
        (corpus / f"{stem}.jsonl").unlink()
    push_dataset(corpus, "me/corpus")
    push(run, corpus="me/corpus")


@pytest.mark.parametrize(
    "name", ["../x", "me/../x", "me", "me/a/b", "/me/x", "me/.x", "me/x.git", "me\\x/y", "me/x%2f"]
)
def test_names_that_are_no_repositories(run: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="is no Hub repository"):
        push_run(run, name, base="me/reader")


def test_links_out_of_the_folder_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret")
    (run / "README.md").symlink_to(tmp_path / "secret.md")
    refused(PublishError, "README.md is a link that leads out of the folder", run)


# Trouble --------------------------------------------------------------------------------------------------------------

COMMIT, PREUPLOAD, BATCH = "POST .*/commit/", "POST .*/preupload/", "POST .*objects/batch"
PASSING = {
    "500 at the commit": Fault(500, COMMIT, times=2),
    "500 while looking": Fault(500, "GET .*/tree/"),
    "429 with Retry-After": Fault(429, COMMIT, retry_after=2),
    "429 at the upload": Fault(429, "PUT /lfs", retry_after=1),
    "503 at the batch": Fault(503, BATCH),
    "409 at the commit": Fault(409, COMMIT),
    "412 at the commit": Fault(412, COMMIT),
    "reset in mid-upload": Fault(path="PUT /lfs", reset="body"),
    "reset in mid-commit": Fault(path=COMMIT, reset="body"),
    "answer to the commit lost": Fault(path=COMMIT, reset="after"),
    "answer to the creation lost": Fault(path="POST /api/repos/create", reset="after"),
    "answer to the upload lost": Fault(path="PUT /lfs", reset="after"),
    "slow bodies": Fault(path="GET ", delay=0.02, times=-1),
    "reset before the batch": Fault(path=BATCH, reset="before"),
}
LASTING = {
    "401": Fault(401, COMMIT, times=-1, message="Invalid credentials in Authorization header"),
    "403": Fault(403, COMMIT, times=-1),
    "403 at the creation": Fault(403, "POST /api/repos/create", times=-1),
    "500 for ever": Fault(500, COMMIT, times=-1),
    "429 for an hour": Fault(429, COMMIT, times=-1, retry_after=3600),
    "uploads break": Fault(path="PUT /lfs", times=-1, reset="body"),
    "a server that repeats the token": Fault(400, COMMIT, times=-1, message="what is {authorization}?"),
}


@pytest.fixture
def expected(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> dict[str, bytes]:
    """The content that an untroubled push gives (to a repository of its own, then forgotten)."""
    push(run)
    files = hub.store.files("me/ft-par")
    repo = hub.store.repos.pop(("model", "me/ft-par"))
    assert repo.lfs
    return files


@pytest.mark.parametrize("name", PASSING)
def test_passing_trouble_is_waited_out(hub: HubServer, run: Path, expected: dict[str, bytes], name: str) -> None:
    with hub.trouble(Fault(**vars(PASSING[name]))):
        push(run)
    assert hub.store.files("me/ft-par") == expected
    repo = hub.store.repos["model", "me/ft-par"]
    assert len(repo.history(repo.resolve("main"))) == 2, "trouble must not make a second commit"


@pytest.mark.parametrize("name", LASTING)
def test_lasting_trouble_is_told_and_leaves_nothing_half_done(
    hub: HubServer, run: Path, expected: dict[str, bytes], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import traceback

    with hub.trouble(Fault(**vars(LASTING[name]))), pytest.raises(HubError) as caught:
        push(run)
    text = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in text
    assert TOKEN not in "".join(capfd.readouterr())
    assert str(caught.value).startswith("Push to me/ft-par failed: ")
    if ("model", "me/ft-par") in hub.store.repos:
        assert set(hub.store.files("me/ft-par")) == {".gitattributes"}
    push(run)
    assert hub.store.files("me/ft-par") == expected


def test_quota(hub: HubServer, run: Path, expected: dict[str, bytes]) -> None:
    hub.quota = 1000
    with pytest.raises(HubError, match=r"Storage quota exceeded.*Free some storage"):
        push(run)
    hub.quota = None
    push(run)
    assert hub.store.files("me/ft-par") == expected


def test_large_files_that_arrived_are_not_sent_again(hub: HubServer, run: Path, base: Path) -> None:
    shutil.rmtree(run)
    make_run(run, base, size=LARGE)  # multipart
    with hub.trouble(Fault(403, COMMIT)) as plan, pytest.raises(HubError):
        push(run)
    assert sum("/part/" in line for line in plan.seen) > 1
    with hub.trouble() as plan:
        push(run)
    assert not [line for line in plan.seen if line.startswith("PUT /lfs")]
    assert hub.store.files("me/ft-par")["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()


def test_somebody_elses_commit_in_between_is_kept(hub: HubServer, run: Path) -> None:
    push(run)
    (run / "log.jsonl").write_text('{"update": 2}\n')
    store = hub.store

    def commit_in_between() -> None:
        repo = store.repos["model", "me/ft-par"]
        head = repo.resolve("main")
        made = store.commit(repo, head.id, {**head.files, "NOTES.md": store.put(b"theirs")}, "theirs", "other")
        repo.refs["refs/heads/main"] = made.id

    # Strikes while ours is under way: the commit that ours builds on isn't the newest any more.
    with hub.trouble(Fault(412, COMMIT, then=commit_in_between)):
        push(run)
    files = hub.store.files("me/ft-par")
    assert (files["NOTES.md"], files["log.jsonl"]) == (b"theirs", b'{"update": 2}\n')


def test_no_token(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="hf auth login"):
        push(run)
