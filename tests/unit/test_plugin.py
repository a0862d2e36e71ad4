"""The plugin and the start-up hook, against a stand-in for lm_eval where the real one would only be slow."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import pytest

from lm_eval_kinject import _startup, plugin


class FakeTaskManager:
    """lm_eval's signature, and a record of what it was called with."""

    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        self.seen = (verbosity, include_path, include_defaults, metadata)


@pytest.fixture
def manager():
    """A fresh class each time: the plugin changes it."""
    made = type("TaskManager", (FakeTaskManager,), {"__init__": FakeTaskManager.__init__})
    plugin._add_tasks(made)
    return made


@pytest.mark.parametrize(
    ("args", "kwargs", "paths"),
    [
        ((), {}, ["OURS"]),
        ((), {"include_path": None}, ["OURS"]),
        ((), {"include_path": "mine"}, ["OURS", "mine"]),
        ((), {"include_path": Path("mine")}, ["OURS", Path("mine")]),
        ((), {"include_path": ["a", "b"]}, ["OURS", "a", "b"]),
        ((), {"include_path": ("a", "b")}, ["OURS", "a", "b"]),
        ((), {"include_path": []}, ["OURS"]),
        ((None, "mine"), {}, ["OURS", "mine"]),
        (("INFO", "mine", True, {"k": 1}), {}, ["OURS", "mine"]),
    ],
)
def test_our_tasks_come_before_the_users(manager, args, kwargs, paths):
    made = manager(*args, **kwargs)
    assert made.seen[1] == [plugin.tasks_dir() if path == "OURS" else path for path in paths]
    # What the caller gave is what can be read back, and the other arguments arrive as they were.
    assert made.include_path == (kwargs.get("include_path") if not args else args[1])
    assert made.seen[0] == (args[0] if args else None)
    assert made.seen[3] == (args[3] if len(args) > 3 else None)


def test_without_defaults_there_are_none_of_ours(manager):
    assert manager(include_path="mine", include_defaults=False).seen[1] == "mine"
    assert manager(None, "mine", False).seen[1] == "mine"


def test_our_folder_given_by_the_user_is_not_listed_twice(manager):
    ours = plugin.tasks_dir()
    assert manager(include_path=str(ours)).seen[1] == [str(ours)]
    assert manager(include_path=["a", ours]).seen[1] == ["a", ours]


def test_adding_twice_is_adding_once(manager):
    once = manager.__init__
    plugin._add_tasks(manager)
    assert manager.__init__ is once


def test_a_wrong_argument_is_still_a_type_error(manager):
    with pytest.raises(TypeError, match="no_such"):
        manager(no_such=1)


def test_a_subclass_gets_our_tasks_once(manager):
    class Mine(manager):
        def __init__(self):
            super().__init__(include_path="mine")

    assert Mine().seen[1] == [plugin.tasks_dir(), "mine"]


def test_an_unknown_task_manager_is_left_alone_and_named(caplog, monkeypatch):
    fake = types.ModuleType("lm_eval.tasks")
    fake.TaskManager = type("TaskManager", (), {"__init__": lambda self, folders=None: None})
    before = fake.TaskManager.__init__
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", fake)
    plugin.on_import("lm_eval.tasks")
    assert fake.TaskManager.__init__ is before
    assert "takes no include_path" in caplog.text
    assert "kinject doctor" in caplog.text


@pytest.mark.parametrize(
    ("version", "numbers", "reads"),
    [
        ("0.4.13", (0, 4, 13), False),
        ("0.4.13.dev0", (0, 4, 13), False),
        ("0.4.9.2", (0, 4, 9), False),
        ("0.4.14", (0, 4, 14), True),
        ("0.4.14rc1", (0, 4, 14), True),
        ("0.5", (0, 5), True),
        ("1.0.0+local", (1, 0, 0), True),
    ],
)
def test_which_releases_read_entry_points(version, numbers, reads):
    assert plugin._release(version) == numbers
    assert plugin._reads_entry_points(version) is reads
    assert plugin._reads_entry_points(None) is False


def test_registration_is_idempotent_and_leaves_the_built_in_models(monkeypatch):
    models = pytest.importorskip("lm_eval.models")
    from lm_eval.api.registry import model_registry

    plugin.on_import("lm_eval.models")
    before = dict(model_registry.items())
    plugin.on_import("lm_eval.models")
    assert dict(model_registry.items()) == before
    assert set(before) >= {*models.MODEL_MAPPING, *plugin.MODELS}
    assert {name for name, held in before.items() if "kinject" in str(held)} == {
        "rag-hf",
        "rag-local-completions",
        "rag-local-chat-completions",
        "rag-openai-completions",
        "rag-openai-chat-completions",
        "rag-vllm",
        "rag-sglang",
    }


def test_where_entry_points_are_read_the_placeholder_is_the_same_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    monkeypatch.setattr(plugin, "_version_of", lambda _: "0.4.14")
    found = EntryPoint(name="rag-hf", value=plugin.MODELS["rag-hf"], group="lm_eval.models")
    assert plugin._placeholder("rag-hf", plugin.MODELS["rag-hf"]) == found
    monkeypatch.setattr(plugin, "_version_of", lambda _: "0.4.13")
    assert plugin._placeholder("rag-hf", plugin.MODELS["rag-hf"]) == plugin.MODELS["rag-hf"]


def test_data_folders_of_a_wheel_and_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "lm_eval_kinject"
    monkeypatch.setattr(plugin, "__file__", str(package / "plugin.py"))
    assert plugin.tasks_dir() == package / "_data" / "tasks"
    assert plugin.adapters_dir() == package / "_data" / "adapters"
    assert plugin.assets_dir() == package / "assets"
    (tmp_path / "build_backend.py").touch()
    assert plugin.tasks_dir() == tmp_path / "tasks"
    assert plugin.adapters_dir() == tmp_path / "adapters"
    assert plugin.assets_dir() == package / "assets"


@pytest.fixture
def no_hook(monkeypatch):
    others = [finder for finder in sys.meta_path if type(finder).__name__ != "StartupHook"]
    monkeypatch.setattr(sys, "meta_path", others)
    return others


@pytest.mark.parametrize(("value", "installed"), [(None, 1), ("", 1), ("0", 1), ("1", 0), ("yes", 0)])
def test_the_environment_switches_the_hook_off(no_hook, monkeypatch, value, installed):
    if value is None:
        monkeypatch.delenv("LM_EVAL_KINJECT_DISABLE", raising=False)
    else:
        monkeypatch.setenv("LM_EVAL_KINJECT_DISABLE", value)
    _startup.install()
    _startup.install()
    assert sum(isinstance(finder, _startup.StartupHook) for finder in sys.meta_path) == installed


def fake_lm_eval(folder: Path, body: str = "") -> None:
    """An lm_eval of two watched modules, one of them a package."""
    (folder / "lm_eval" / "tasks").mkdir(parents=True)
    (folder / "lm_eval" / "__init__.py").touch()
    (folder / "lm_eval" / "models.py").write_text(f"here = True\n{body}")
    (folder / "lm_eval" / "tasks" / "__init__.py").write_text("here = True\n")


@pytest.fixture
def hooked(no_hook, monkeypatch, tmp_path):
    """The hook in place, no lm_eval loaded, and a list of what the plugin is told."""
    told: list[str] = []
    monkeypatch.setattr(plugin, "on_import", told.append)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LM_EVAL_KINJECT_DISABLE", raising=False)
    _startup.install()
    yield told
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


def test_the_hook_tells_the_plugin_after_loading_and_leaves_no_trace(hooked, tmp_path):
    fake_lm_eval(tmp_path)
    import lm_eval

    assert hooked == []
    import lm_eval.models
    import lm_eval.tasks

    assert hooked == ["lm_eval.models", "lm_eval.tasks"]
    for module in (lm_eval.models, lm_eval.tasks):
        assert module.here
        assert type(module.__loader__).__name__ == "SourceFileLoader"
        assert module.__spec__.loader is module.__loader__
    assert lm_eval.tasks.__path__ == [str(tmp_path / "lm_eval" / "tasks")]


def test_an_error_of_lm_eval_itself_passes_through(hooked, tmp_path):
    fake_lm_eval(tmp_path, body="raise RuntimeError('of lm_eval')")
    with pytest.raises(RuntimeError, match="of lm_eval"):
        import lm_eval.models  # noqa: F401
    assert hooked == []


def test_a_missing_lm_eval_is_missing_as_ever(hooked, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="lm_eval"):
        import lm_eval.models  # noqa: F401


def test_uninstalled_is_silent_but_broken_is_said(hooked, tmp_path, monkeypatch):
    fake_lm_eval(tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval_kinject.plugin", None)
    monkeypatch.delattr(sys.modules["lm_eval_kinject"], "plugin")
    with pytest.warns(RuntimeWarning, match="can't add rag-hf"):
        import lm_eval.models
    monkeypatch.setitem(sys.modules, "lm_eval_kinject", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import lm_eval.tasks
    assert lm_eval.models.here
    assert lm_eval.tasks.here


def test_state_names_the_way_and_what_to_do(no_hook, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setattr(plugin, "_version_of", lambda _: "0.4.13")
    monkeypatch.setattr(plugin, "tasks_dir", lambda: Path(__file__).parent)
    monkeypatch.setenv("LM_EVAL_KINJECT_DISABLE", "1")
    state = plugin.discovery_state()
    assert (state.models, state.tasks, state.disabled, state.hook_installed) == ("off", "off", True, False)
    assert len(state.problems) == 1
    assert "LM_EVAL_KINJECT_DISABLE is set: unset it" in state.problems[0]

    monkeypatch.delenv("LM_EVAL_KINJECT_DISABLE")
    assert "reinstall lm-eval-kinject" in plugin.discovery_state().problems[0]

    _startup.install()
    state = plugin.discovery_state()
    assert (state.models, state.tasks, state.problems) == ("start-up hook", "start-up hook", ())

    monkeypatch.setattr(plugin, "_version_of", lambda _: "0.4.14")
    monkeypatch.setattr(plugin, "_declares_entry_point", lambda: True)
    state = plugin.discovery_state()
    assert (state.models, state.tasks) == ("entry point", "start-up hook")

    monkeypatch.setattr(plugin, "_version_of", lambda _: None)
    assert "pip install lm-eval" in plugin.discovery_state().problems[0]
    monkeypatch.setattr(plugin, "_version_of", lambda _: "0.4.9")
    assert "older than 0.4.13" in plugin.discovery_state().problems[0]
