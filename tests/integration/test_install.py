"""The built wheel and the editable install, in fresh environments, with lm_eval's real command in a subprocess.

A fresh environment sees the libraries of the test environment through a folder of links that leaves out everything of
ours: so nothing is downloaded, and the test environment's own install can't answer for the one under test. What costs
15 s each (lm_eval indexes 14,000 YAML files) is done in few processes; the rest swaps lm_eval's own tasks for none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval")

PYTHON_TAG = f"python{sys.version_info.major}.{sys.version_info.minor}"
NEVER_IMPORTABLE = ("tasks", "tests", "adapters", "trainer", "benchmarks", "docs", "build_backend", "helpers", "_data")
NOT_COPIED = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "runs", "results")

# For checks that are about our tasks alone: lm_eval's own folder is an empty one, so that indexing takes no time.
WITHOUT_BUILT_INS = """
import lm_eval.tasks.manager as manager, tempfile, os
manager.__file__ = os.path.join(tempfile.mkdtemp(), "manager.py")
from lm_eval.tasks import TaskManager
"""


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, without pip: the test environment's pip installs into it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.folder / "lib" / PYTHON_TAG / "site-packages"

    def run(self, *arguments: str | Path, ok: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python there, in a folder that holds nothing, with nothing of the caller's Python settings."""
        cwd = self.folder / "empty"
        cwd.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LM_EVAL_KINJECT"))}
        settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf"), **variables}
        done = subprocess.run(
            [self.python, *arguments], cwd=cwd, env=kept | settings, capture_output=True, text=True, timeout=300
        )
        assert not ok or done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def says(self, code: str, *options: str, **variables: str) -> object:
        """What this code prints last, as JSON."""
        done = self.run(*options, "-c", textwrap.dedent(code), **variables)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def pip(self, *arguments: str | Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments],
            check=True,
            capture_output=True,
            timeout=300,
        )

    def installed(self) -> set[str]:
        """All that lies in site-packages and bin, but for bytecode of what was there before."""
        return {
            path.relative_to(self.folder).as_posix()
            for base in (self.site_packages, self.folder / "bin")
            for path in base.rglob("*")
            if "__pycache__" not in path.parts
        }


def is_ours(name: str) -> bool:
    return "kinject" in name.lower() or name.partition(".")[0] in NEVER_IMPORTABLE


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test environment's libraries, as links, without anything of ours."""
    view = tmp_path_factory.mktemp("libraries")
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(folder).iterdir():
            if not is_ours(path.name) and path.suffix != ".pth" and path.name != "__pycache__":
                (view / path.name).symlink_to(path)
    return view


@pytest.fixture(scope="module")
def new_environment(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Callable[..., Environment]:
    def make(name: str, with_libraries: bool = True) -> Environment:
        made = Environment(tmp_path_factory.mktemp(name))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.folder], check=True)
        if with_libraries:
            (made.site_packages / "libraries.pth").write_text(f"{libraries}\n")
        return made

    return make


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A copy of the checkout, so that building and editing leave the real one alone."""
    copy = tmp_path_factory.mktemp("checkout") / "lm-eval-kinject"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


def build(command: str, checkout: Path, out: Path) -> Path:
    """Call a hook of the build backend in its own process, as pip would; returns what it has built."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"import build_backend; print(build_backend.{command}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, new_environment: Callable[..., Environment]) -> Environment:
    made = new_environment("from_wheel")
    made.pip("install", "--no-deps", "--no-index", wheel)
    return made


@pytest.fixture(scope="module")
def editable(checkout: Path, new_environment: Callable[..., Environment]) -> Environment:
    made = new_environment("editable")
    made.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", checkout)
    return made


@pytest.fixture(params=["from_wheel", "editable"])
def installed(request: pytest.FixtureRequest) -> Environment:
    made: Environment = request.getfixturevalue(request.param)
    return made


def our_names(tasks: Path) -> set[str]:
    """Every task and group that our YAML files name."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda *_: None)
    configs = [yaml.load(path.read_text(), loader) for path in tasks.rglob("*.yaml")]
    return {c[key] for c in configs for key in ("group", "task") if isinstance(c.get(key), str)}


# What is in the wheel -------------------------------------------------------------------------------------------------


def test_wheel_holds_everything_and_nothing_else_at_the_top(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
    top = {name.partition("/")[0] for name in names}
    assert top == {"lm_eval_kinject", "kinject_trainer", "_lm_eval_kinject_startup.py", "lm_eval_kinject.pth", info}
    for source, target in [
        ("lm_eval_kinject", "lm_eval_kinject"),
        ("trainer/kinject_trainer", "kinject_trainer"),
        ("tasks", "lm_eval_kinject/_data/tasks"),
        ("adapters", "lm_eval_kinject/_data/adapters"),
    ]:
        for path in (checkout / source).rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and path.name != "_startup.py":
                assert f"{target}/{path.relative_to(checkout / source).as_posix()}" in names
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_from_the_sdist_is_the_same(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", checkout, tmp_path)
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2 has none yet
    shutil.unpack_archive(sdist, tmp_path / "unpacked", **filtered)
    again = build("build_wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "again")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())
        for name in one.namelist():
            assert one.read(name) == two.read(name), name


# What lm_eval's command says ------------------------------------------------------------------------------------------


def listed(environment: Environment, **variables: str) -> set[str]:
    """The names in the table of `lm_eval ls tasks`."""
    command = Path(sys.executable).with_name("lm_eval")
    out = environment.run(command, "ls", "tasks", **variables).stdout
    return {line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|") and "---" not in line}


def test_lm_eval_lists_our_tasks_and_otherwise_what_it_lists_without_us(
    from_wheel: Environment, checkout: Path
) -> None:
    with_us, without_us = listed(from_wheel), listed(from_wheel, LM_EVAL_KINJECT_DISABLE="1")
    assert {"arc_easy", "mmlu_anatomy"} <= without_us
    assert without_us <= with_us
    assert with_us - without_us >= our_names(checkout / "tasks") >= {"current_events"}
    # Tags, the only names that are not files of ours, come from our files too.
    assert not {name for name in without_us if "kinject" in name or "current_events" in name}


def test_the_module_form_works_with_the_hook_off(from_wheel: Environment) -> None:
    done = from_wheel.run(
        "-m", "lm_eval_kinject", "validate", "--tasks", "current_events,arc_easy", LM_EVAL_KINJECT_DISABLE="1"
    )
    assert "All tasks found and valid" in done.stdout


@pytest.mark.parametrize(("command", "install"), [("lm_eval", "from_wheel"), ("lm-eval", "editable")])
def test_the_unmodified_command_scores_with_retrieval(
    command: str, install: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment: Environment = request.getfixturevalue(install)
    done = environment.run(
        Path(sys.executable).with_name(command),
        "--model", "rag-hf", "--model_args", "retriever=bm25,k=3", "--tasks", "current_events",
        "--limit", "4", "--output_path", tmp_path, KINJECT_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert "|current_events|" in done.stdout
    config = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["config"]
    assert (config["model"], config["kinject"]["k"], config["kinject"]["model"]["name"]) == ("rag-hf", 3, "reader")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("retriver=bm25", "retriver= is unknown (did you mean retriever"),
        ("retriever=bm25,k=-1,placement=middle", "k=-1"),
        ("retriever=bm25,corpus=no/such/corpus", "no/such/corpus"),
        ("pretrained=nobody/nothing,k=0", "pretrained=nobody/nothing"),
        ("token=hf_abcdefghijklmnopqrstuvwxyz,k=0", "HF_TOKEN"),
    ],
)
def test_errors_are_the_commands_last_line(
    from_wheel: Environment, tmp_path: Path, arguments: str, message: str
) -> None:
    command = ["lm_eval", "--model", "rag-hf", "--model_args", arguments, "--tasks", "current_events_cloze"]
    command += ["--limit", "2", "--output_path", str(tmp_path / "out")]
    code = f"import sys; sys.argv = {command!r}\nfrom lm_eval.__main__ import cli_evaluate\ncli_evaluate()"
    done = from_wheel.run("-c", WITHOUT_BUILT_INS + code, ok=False, KINJECT_CACHE=str(tmp_path / "cache"))
    assert done.returncode not in (0, None)
    last = done.stderr.rpartition("\nkinject: ")[2]
    assert message in last
    assert "Traceback" not in done.stderr
    assert "hf_abcdefghijklmnopqrstuvwxyz" not in last
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_tasks_are_found_with_every_include_path(installed: Environment, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\n")
    mine = str(tmp_path)
    calls = [{}, {"include_path": mine}, {"include_path": [mine]}, {"include_path": mine, "include_defaults": False}]
    code = f"import json; print(json.dumps([TaskManager(**given).all_tasks for given in {calls!r}]))"
    ours = our_names(checkout / "tasks")
    none, one, many, bare = (set(names) for names in installed.says(WITHOUT_BUILT_INS + code))
    assert none >= ours
    assert one == many == none | {"mine"}
    assert bare == {"mine"}


def test_an_edit_of_a_task_shows_in_the_editable_install(editable: Environment, checkout: Path) -> None:
    code = WITHOUT_BUILT_INS + "import json; print(json.dumps(TaskManager().all_tasks))"
    added = checkout / "tasks" / "added.yaml"
    assert "added_by_a_test" not in editable.says(code)
    try:
        added.write_text("task: added_by_a_test\ndataset_path: json\n")
        assert "added_by_a_test" in editable.says(code)
        added.write_text("task: edited_by_a_test\ndataset_path: json\n")
        assert "edited_by_a_test" in editable.says(code)
    finally:
        added.unlink()


def test_models_are_registered_and_the_built_in_ones_are_untouched(installed: Environment) -> None:
    code = """
    import json
    import lm_eval.models
    from lm_eval.api.registry import get_model, model_registry
    held = {name: str(target) for name, target in model_registry.items()}
    try:
        import sys
        sys.modules["lm_eval_kinject.models.rag_hf"] = None
        get_model("rag-hf")
    except ImportError as error:
        broken = str(error)
    del sys.modules["lm_eval_kinject.models.rag_hf"]
    found = get_model("rag-hf")
    print(json.dumps([held, lm_eval.models.MODEL_MAPPING, broken, f"{found.__module__}:{found.__name__}"]))
    """
    held, built_in, broken, found = installed.says(code)
    assert held == built_in | {
        "rag-hf": "lm_eval_kinject.models.rag_hf:RagHFLM",
        "rag-local-completions": "lm_eval_kinject.models.rag_api:RagLocalCompletionsLM",
        "rag-local-chat-completions": "lm_eval_kinject.models.rag_api:RagLocalChatCompletionsLM",
        "rag-openai-completions": "lm_eval_kinject.models.rag_api:RagOpenAICompletionsLM",
        "rag-openai-chat-completions": "lm_eval_kinject.models.rag_api:RagOpenAIChatCompletionsLM",
        "rag-vllm": "lm_eval_kinject.models.rag_vllm:RagVLLM",
        "rag-sglang": "lm_eval_kinject.models.rag_sglang:RagSGLangLM",
    }
    assert "lm_eval_kinject.models.rag_hf" in broken
    assert found == "lm_eval_kinject.models.rag_hf:RagHFLM"
    off = "import lm_eval.models, lm_eval.api.registry as r, json; print(json.dumps('rag-hf' in r.model_registry))"
    assert installed.says(off, LM_EVAL_KINJECT_DISABLE="1") is False


def test_entry_points_are_declared_for_later_releases(installed: Environment) -> None:
    code = """
    import json
    from importlib.metadata import entry_points
    points = [*entry_points(group="lm_eval.models"), *entry_points(group="console_scripts", name="kinject")]
    print(json.dumps([[p.group, p.name, p.value] for p in points if "kinject" in p.value]))
    """
    assert installed.says(code) == [
        ["lm_eval.models", "rag-hf", "lm_eval_kinject.models.rag_hf:RagHFLM"],
        ["lm_eval.models", "rag-local-chat-completions", "lm_eval_kinject.models.rag_api:RagLocalChatCompletionsLM"],
        ["lm_eval.models", "rag-local-completions", "lm_eval_kinject.models.rag_api:RagLocalCompletionsLM"],
        ["lm_eval.models", "rag-openai-chat-completions", "lm_eval_kinject.models.rag_api:RagOpenAIChatCompletionsLM"],
        ["lm_eval.models", "rag-openai-completions", "lm_eval_kinject.models.rag_api:RagOpenAICompletionsLM"],
        ["lm_eval.models", "rag-sglang", "lm_eval_kinject.models.rag_sglang:RagSGLangLM"],
        ["lm_eval.models", "rag-vllm", "lm_eval_kinject.models.rag_vllm:RagVLLM"],
        ["console_scripts", "kinject", "lm_eval_kinject.cli:main"],
    ]
    assert (installed.folder / "bin" / "kinject").exists()


def test_discovery_state_and_folders(installed: Environment, checkout: Path) -> None:
    code = """
    import json
    from lm_eval_kinject import plugin
    state = plugin.discovery_state()
    print(json.dumps([state.models, state.tasks, state.hook_installed, state.disabled, state.entry_point_declared,
                      list(state.problems), str(state.tasks_folder), str(plugin.adapters_dir())]))
    """
    *rest, tasks, adapters = installed.says(code)
    assert rest == ["start-up hook", "start-up hook", True, False, True, []]
    home = installed.site_packages / "lm_eval_kinject" / "_data"
    if not home.exists():
        home = checkout
    assert (Path(tasks), Path(adapters)) == (home / "tasks", home / "adapters")
    *rest, _, _ = installed.says(code, LM_EVAL_KINJECT_DISABLE="1")
    assert rest[:4] == ["off", "off", False, True]
    assert len(rest[5]) == 1


# What it does to Python -----------------------------------------------------------------------------------------------


def test_only_our_two_names_become_importable(installed: Environment) -> None:
    code = f"""
    import json, importlib.util
    names = {NEVER_IMPORTABLE!r}
    import lm_eval_kinject, kinject_trainer, lm_eval_kinject.plugin
    print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
    """
    assert installed.says(code) == []
    top = {path.name for path in installed.site_packages.iterdir()} - {"libraries.pth", "__pycache__"}
    assert {name for name in top if not name.startswith(("lm_eval_kinject", "_lm_eval_kinject"))} <= {"kinject_trainer"}


@pytest.mark.parametrize("option", ["-I", "-E", "-s"])
def test_the_hook_is_there_in_isolated_mode(installed: Environment, option: str) -> None:
    code = "import sys, json; print(json.dumps([type(f).__name__ for f in sys.meta_path].count('StartupHook')))"
    assert installed.says(code, option) == 1
    assert installed.says(code, "-S") == 0


def test_starting_python_imports_next_to_nothing(installed: Environment) -> None:
    code = "import sys; mods = sorted(sys.modules); import json; print(json.dumps(mods))"
    with_us = set(installed.says(code))
    for pth in installed.site_packages.glob("*kinject*.pth"):
        pth.rename(pth.with_suffix(".away"))
    try:
        without_us = set(installed.says(code))
    finally:
        for away in installed.site_packages.glob("*.away"):
            away.rename(away.with_suffix(".pth"))
    assert {"_lm_eval_kinject_startup"} <= with_us - without_us
    assert with_us - without_us <= {"_lm_eval_kinject_startup", "_lm_eval_kinject_editable"}


def test_left_overs_and_a_missing_lm_eval_are_silent(wheel: Path, new_environment: Callable[..., Environment]) -> None:
    bare = new_environment("bare", with_libraries=False)
    clean = bare.installed()
    bare.pip("install", "--no-deps", "--no-index", wheel)

    def silent(code: str) -> None:
        done = bare.run("-W", "error", "-c", code)
        assert (done.stdout, done.stderr) == ("", "")

    silent("pass")
    assert "No module named 'lm_eval'" in bare.run("-c", "import lm_eval.models", ok=False).stderr

    # Uninstalling leaves nothing at all.
    hidden = bare.site_packages / "lm_eval_kinject.pth"
    kept = hidden.read_text(), (bare.site_packages / "_lm_eval_kinject_startup.py").read_text()
    bare.pip("uninstall", "-y", "lm-eval-kinject")
    assert bare.installed() == clean

    # Files left by hand: the start-up file with its module, then the start-up file alone; and an lm_eval is there.
    for name in ("models", "tasks"):
        (bare.site_packages / "lm_eval" / name).mkdir(parents=True)
        (bare.site_packages / "lm_eval" / name / "__init__.py").touch()
    hidden.write_text(kept[0])
    (bare.site_packages / "_lm_eval_kinject_startup.py").write_text(kept[1])
    silent("import lm_eval.models, lm_eval.tasks")
    (bare.site_packages / "_lm_eval_kinject_startup.py").unlink()
    silent("import lm_eval.models, lm_eval.tasks")


def test_uninstalling_the_editable_install_leaves_nothing(
    checkout: Path, new_environment: Callable[..., Environment]
) -> None:
    made = new_environment("editable_again")
    clean = made.installed()
    made.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", checkout)
    assert made.installed() != clean
    made.pip("uninstall", "-y", "lm-eval-kinject")
    assert made.installed() == clean
