"""Uses the unmodified clients against whatever ``HF_ENDPOINT`` says and prints what they saw, as one JSON line.

Run as a program by tests/contract/test_hub_server.py, in a process of its own: the clients read the endpoint once, when
they are imported. Arguments: folder with a tiny model, scratch folder. Nothing of our package is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def hub_api(scratch: Path) -> dict[str, Any]:
    """huggingface_hub: repositories, LFS basic and multipart, commits, references, pull requests."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

    api = HfApi()
    seen: dict[str, Any] = {"whoami": api.whoami()["name"]}
    seen["url"] = str(api.create_repo("me/things", private=True)).rsplit("/", 2)[-2:]
    api.create_repo("me/things", exist_ok=True)
    small, big = os.urandom(70_000), os.urandom(700_000)
    files = {"README.md": b"---\nlicense: mit\n---\nhello", "a/small.bin": small, "a/big.bin": big, "t.txt": b"text"}
    commit = api.create_commit("me/things", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="all")
    seen["same"] = (
        api.create_commit("me/things", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="again").oid
        == commit.oid
    )
    info = api.model_info("me/things", files_metadata=True)
    seen["sha"], seen["private"] = info.sha == commit.oid, info.private
    seen["lfs"] = sorted(s.rfilename for s in info.siblings or [] if s.lfs)
    seen["tree"] = [f.path for f in api.list_repo_tree("me/things", recursive=True)]
    seen["top"] = [f.path for f in api.list_repo_tree("me/things")]
    seen["paths"] = [p.path for p in api.get_paths_info("me/things", ["a", "t.txt", "absent"])]
    local = Path(snapshot_download("me/things"))
    seen["snapshot"] = (local / "a/big.bin").read_bytes() == big and local.name == commit.oid
    seen["absent"] = api.file_exists("me/things", "absent"), api.file_exists("me/things", "t.txt")

    first = api.create_commit(
        "me/things", [CommitOperationDelete("t.txt"), CommitOperationAdd("u.txt", b"u")], commit_message="pr",
        create_pr=True,
    )  # fmt: skip
    seen["pr"] = first.pr_num, first.pr_revision, api.file_exists("me/things", "u.txt")
    seen["pr file"] = Path(hf_hub_download("me/things", "u.txt", revision="refs/pr/1")).read_text()
    seen["open"] = [(d.num, d.status) for d in api.get_repo_discussions("me/things", discussion_status="open")]
    api.merge_pull_request("me/things", 1)
    seen["merged"] = api.file_exists("me/things", "u.txt"), api.get_discussion_details("me/things", 1).status
    api.create_branch("me/things", branch="b/1", revision=commit.oid)
    api.create_tag("me/things", tag="v1", revision=commit.oid)
    refs = api.list_repo_refs("me/things", include_pull_requests=True)
    seen["refs"] = [sorted(r.name for r in x) for x in (refs.branches, refs.tags, refs.pull_requests or [])]
    seen["at branch"] = api.model_info("me/things", revision="b/1").sha == commit.oid
    seen["history"] = [c.title for c in api.list_repo_commits("me/things")]
    seen["errors"] = hub_errors(api, commit.oid)
    return seen


def hub_errors(api: Any, old: str) -> dict[str, str]:
    """Which exception the client makes of each refusal."""
    from huggingface_hub import CommitOperationAdd, ModelCard

    text = CommitOperationAdd("x.txt", b"x")
    calls = {
        "no repo": lambda: api.model_info("me/none"),
        "no revision": lambda: api.model_info("me/things", revision="none"),
        "no file": lambda: api.hf_hub_download("me/things", "none.txt"),
        "nobody": lambda: api.model_info("me/things", token=False),
        "bad token": lambda: api.whoami(token="hf_wrong"),
        "not mine": lambda: api.create_repo("other/x"),
        "exists": lambda: api.create_repo("me/things"),
        "moved": lambda: api.create_commit("me/things", [text], commit_message="x", parent_commit=old),
        "card": lambda: ModelCard("---\nlicense: nonsense\n---\n").validate(),
        "results": lambda: api.upload_file(
            path_or_fileobj=b"- value: 1\n", path_in_repo=".eval_results/x.yaml", repo_id="me/things"
        ),
    }
    seen = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            seen[name] = f"{type(error).__name__} {status}"
        else:
            seen[name] = "no error"
    return seen


def models(folder: str, scratch: Path) -> dict[str, Any]:
    """transformers and peft: push, load from a fresh cache, at a pinned revision."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder)
    base.push_to_hub("me/tiny")
    AutoTokenizer.from_pretrained(folder).push_to_hub("me/tiny")
    loaded = AutoModelForCausalLM.from_pretrained("me/tiny")
    tokens = AutoTokenizer.from_pretrained("me/tiny")("Who opened the bridge?", return_tensors="pt")
    with torch.no_grad():
        same = torch.equal(base(**tokens).logits, loaded(**tokens).logits)
    adapted = get_peft_model(loaded, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = adapted(**tokens).logits
    adapted.push_to_hub("me/tiny-lora")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("me/tiny"), "me/tiny-lora")
    with torch.no_grad():
        return {"model": same, "adapter": torch.equal(expected, again(**tokens).logits)}


def datasets_library(scratch: Path) -> dict[str, Any]:
    """datasets: push, and load again."""
    from datasets import Dataset, load_dataset

    rows = {"question": ["a?", "b?"], "answer": [0, 1]}
    Dataset.from_dict(rows).push_to_hub("me/questions", split="test")
    found = load_dataset("me/questions", split="test")
    return {"rows": found.to_dict() == rows}


def main() -> None:
    """Runs all and prints it with the seconds that each took."""
    folder, scratch = sys.argv[1], Path(sys.argv[2])
    seen: dict[str, Any] = {}
    parts = {"hub": lambda: hub_api(scratch), "datasets": lambda: datasets_library(scratch)}
    for name, part in {**parts, "models": lambda: models(folder, scratch)}.items():
        start = time.perf_counter()
        seen[name] = part()
        seen[f"{name} seconds"] = round(time.perf_counter() - start, 1)
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
