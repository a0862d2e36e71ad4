"""``kinject push --as dataset``: a corpus or a question set becomes a data set on the Hub.

What it is for: `push_dataset` chooses a folder's tables, lists them in the card as configurations that
``datasets.load_dataset`` reads, and adds an ``eval.yaml`` where the Hub takes one. What it does not do: it looks into
no table, and knows no run (push.py does).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.client import Say, check_repo_id, quiet
from lm_eval_kinject.hub.content import Content, collect
from lm_eval_kinject.hub.eval_results import eval_yaml
from lm_eval_kinject.hub.publish import Plan, Published, publish

__all__ = ["push_dataset"]

_DATA = ("*.parquet", "*.jsonl", "*.csv", "*/*.parquet", "*/*.jsonl", "*/*.csv", "README.md", "LICENSE*")


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    framework: str = "lm-evaluation-harness",
    public: bool = False,
    pull_request: bool = False,
    dry_run: bool = False,
    say: Say = quiet,
) -> Published | Plan:
    """Publishes a corpus or the data of a task folder as a data set.

    Tables named after a split (train, validation, dev, test) are one configuration, named after their folder; any other
    table is a configuration of its own, as tables that differ in their columns can't be loaded as one. An ``eval.yaml``
    is added where the Hub takes one for ``framework``; where it doesn't, ``say`` hears so.

    Raises:
        PublishError, HubError: as for `push_run` in push.py.
    """
    check_repo_id(repo_id)
    content = collect(folder, allowed=_DATA)
    configs = _configs(content)
    if not configs:
        raise PublishError(f"The folder {Path(folder).name} has no tables (.parquet, .jsonl, .csv) to publish.")
    name = repo_id.split("/")[1]
    card = _dataset_card(content, name, configs)
    content = content.with_files({"README.md": card.encode()})
    tasks = [{"id": c, "config": c, "split": "test"} for c, splits in configs.items() if "test" in splits]
    if tasks:
        written, word = eval_yaml(name, f"Questions of {name}.", tasks, framework)
        say(word)
        content = content.with_files({"eval.yaml": written} if written is not None else {})
    return publish(
        content,
        repo_id,
        kind="dataset",
        message=f"Publish {name}",
        public=public,
        gone=_is_table,
        pull_request="data" if pull_request else None,
        dry_run=dry_run,
        say=say,
    )


def _is_table(path: str) -> bool:
    return path.endswith((".parquet", ".jsonl", ".csv"))


def _configs(content: Content) -> dict[str, dict[str, str]]:
    """Configuration -> split -> file."""
    configs: dict[str, dict[str, str]] = {}
    for path in sorted(content.files):
        folder, _, file = path.rpartition("/")
        stem = file.rpartition(".")[0]
        if not _is_table(path):
            continue
        # Questions split by file are one configuration; a corpus's tables have columns of their own.
        together = stem in ("train", "validation", "test", "dev") and folder.rpartition("/")[2] != "corpus"
        config, split = (folder or "default", stem) if together else (stem, "train")
        configs.setdefault(config, {})[split] = path
    return configs


def _dataset_card(content: Content, name: str, configs: Mapping[str, Mapping[str, str]]) -> str:
    from huggingface_hub import DatasetCard

    text = content.read("README.md").decode("utf-8") if "README.md" in content.files else f"# {name}\n"
    card = DatasetCard(text)
    card.data["configs"] = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in configs.items()
    ]
    return str(card)
