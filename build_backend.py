"""The PEP 517 build backend: setuptools for metadata and sdist, an explicit list of files for the wheels.

Why not setuptools or hatchling alone: the project's top-level folders `tasks/`, `adapters/` and `trainer/` must be
shipped and must not become importable, in a wheel or in an editable install. Their editable installs either put the
whole checkout on `sys.path`, where `tasks` and `tests` turn into namespace packages, or import so much whenever Python
starts (`pathlib`, `importlib.util`) that it shows. Here a wheel is a dictionary from path in the wheel to content, so
what is shipped is what stands in `_wheel_files` and `_editable_files`:

    wheel                                   from
    lm_eval_kinject/...                     lm_eval_kinject/...
    lm_eval_kinject/_data/tasks/...         tasks/...
    lm_eval_kinject/_data/adapters/...      adapters/...
    kinject_trainer/...                     trainer/kinject_trainer/...
    kinject_trainer/_data/recipes/...       trainer/recipes/...
    _lm_eval_kinject_startup.py, .pth       lm_eval_kinject/_startup.py and one line

    editable                                what it does
    _lm_eval_kinject_startup.py, .pth       the same
    _lm_eval_kinject_editable.py, .pth      a finder for two names: they load from the checkout, nothing else does

It builds pure Python wheels only. It needs setuptools (PEP 639 licences: 77 or later) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta

ROOT = Path(__file__).resolve().parent
PACKAGES = {"lm_eval_kinject": "lm_eval_kinject", "kinject_trainer": "trainer/kinject_trainer"}
DATA = {
    "lm_eval_kinject/_data/tasks": "tasks",
    "lm_eval_kinject/_data/adapters": "adapters",
    "kinject_trainer/_data/recipes": "trainer/recipes",
}
LEFT_OUT = {"__pycache__", ".ipynb_checkpoints", ".DS_Store"}

# A .pth line must be one statement that starts with "import". The try is for a file that outlives its package: Python
# would print a traceback at each start.
PTH = "import sys; exec('try:\\n    import {0}\\nexcept ImportError:\\n    pass\\nelse:\\n    {0}.install()')\n"

EDITABLE = '''\
"""Made by an editable install of lm-eval-kinject: loads two packages from the checkout, and nothing else from there."""

import sys

FOLDERS = {folders}


class EditableFinder:
    """Finds each package of the checkout in its folder; cheap, because it runs whenever Python starts."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = FOLDERS.get(name)
        if folder is None:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [folder])


def install():
    if not any(getattr(finder, "__name__", "") == "EditableFinder" for finder in sys.meta_path):
        sys.meta_path.append(EditableFinder)
'''


# The hooks that pip and build call ------------------------------------------------------------------------------------

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_wheel
build_sdist = build_meta.build_sdist


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Nothing beyond pyproject.toml's `build-system.requires`."""
    return []


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel that users install; returns its file name."""
    return _write_wheel(wheel_directory, _wheel_files())


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel of `pip install -e`, which points to this checkout; returns its file name."""
    return _write_wheel(wheel_directory, _editable_files())


# What goes in ---------------------------------------------------------------------------------------------------------


def _wheel_files() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for target, source in {**PACKAGES, **DATA}.items():
        found = _read_tree(ROOT / source)
        if not found and target in PACKAGES:
            raise FileNotFoundError(f"{ROOT / source} has no files: build from a whole checkout or sdist.")
        files.update({f"{target}/{name}": content for name, content in found.items()})
    # It is shipped once, at the top level, where the .pth file can import it without importing the package.
    del files["lm_eval_kinject/_startup.py"]
    return {**files, **_startup_files()}


def _editable_files() -> dict[str, bytes]:
    # The folder in which the package lies, by the name of the package.
    folders = {name: str((ROOT / source).parent) for name, source in PACKAGES.items()}
    return {
        "_lm_eval_kinject_editable.py": EDITABLE.format(folders=ascii(folders)).encode(),
        "_lm_eval_kinject_editable.pth": PTH.format("_lm_eval_kinject_editable").encode(),
        **_startup_files(),
    }


def _startup_files() -> dict[str, bytes]:
    return {
        "_lm_eval_kinject_startup.py": (ROOT / "lm_eval_kinject" / "_startup.py").read_bytes(),
        "lm_eval_kinject.pth": PTH.format("_lm_eval_kinject_startup").encode(),
    }


def _read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not LEFT_OUT & set(path.parts)
    }


# The file format ------------------------------------------------------------------------------------------------------


def _write_wheel(directory: str, files: dict[str, bytes]) -> str:
    """Write a pure Python wheel of these files and setuptools' metadata, with the same bytes for the same content."""
    with tempfile.TemporaryDirectory() as scratch:
        info = prepare_metadata_for_build_wheel(scratch)
        metadata = _read_tree(Path(scratch) / info)
    metadata.pop("top_level.txt", None)  # it names setuptools' packages, of which there are none; RECORD says it all
    metadata["WHEEL"] = b"Wheel-Version: 1.0\nGenerator: build_backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {**files, **{f"{info}/{name}": content for name, content in metadata.items()}}
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")

    name = f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    stamp = _timestamp()
    with zipfile.ZipFile(os.path.join(directory, name), "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, stamp)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, content)
    return name


def _record(files: dict[str, bytes], own_path: str) -> bytes:
    """The list of files with their hashes; its own line has none."""
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{_csv(path)},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{own_path},,", ""]).encode()


def _csv(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if "," in path or '"' in path else path


def _timestamp() -> tuple[int, int, int, int, int, int]:
    """When the files are from: of SOURCE_DATE_EPOCH, or the first day that a zip file can name."""
    import time

    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
    year, month, day, hour, minute, second = time.gmtime(epoch)[:6]
    return year, month, day, hour, minute, second
