"""The whole story in one go, with unmodified clients and fresh caches: see helpers/hub_story.py."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hub_fixture import TOKEN
from helpers.hub_story import Story, loads_with_plain_peft, tell
from helpers.local_tasks import TOWNS, chunk_text, copy_current_events
from helpers.tiny_models import make_tiny


def write_dataset_folder(folder: Path) -> None:
    """A corpus as a data set folder: chunks, and two further wordings of each for training."""
    folder.mkdir(parents=True)
    chunks = [{"id": f"c{i}", "title": f"News from {town}", "text": chunk_text(i)} for i, town in enumerate(TOWNS)]
    again = [
        {"chunk": f"c{i}", "number": n, "text": f"Once more ({n}): {chunk_text(i)}"}
        for i in range(len(TOWNS))
        for n in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(chunks), folder / "chunks.parquet")
    pq.write_table(pa.Table.from_pylist(again), folder / "paraphrases.parquet")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Bridges\n")


RECIPE = """\
variant: ft-par
paraphrases: 2
method: lora
rank: 4
block_size: 16
epochs: 2
global_batch: 4
learning_rate: 1.0e-3
forgetting: false
validate_every: never
"""


@pytest.mark.slow
def test_the_check_with_plain_peft_can_fail(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    base = str(make_tiny("llama", tmp_path))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "a")
    file = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(file)
    assert loads_with_plain_peft(tmp_path, base, str(tmp_path / "a")) == len(tensors)
    changes = {
        "no key fits": {key.replace("self_attn", "attention"): tensor for key, tensor in tensors.items()},
        "B is zero": {key: tensor * ("lora_A" in key) for key, tensor in tensors.items()},
    }
    for changed in changes.values():
        save_file(changed, file)
        with pytest.raises(RuntimeError, match="AssertionError"):
            loads_with_plain_peft(tmp_path, base, str(tmp_path / "a"))


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    tasks = copy_current_events(tmp_path / "material" / "tasks")
    write_dataset_folder(tmp_path / "material" / "corpus")
    story = Story(
        base=str(make_tiny("llama", tmp_path)),
        corpus=str(tmp_path / "material" / "corpus"),
        questions=str(tasks / "data"),
        tasks=str(tasks.parent),
        recipe=RECIPE,
        retrieval="retriever=bm25,k=2",
        scratch=str(tmp_path),
    )
    told = tell(story, {"OMP_NUM_THREADS": "1"}, timeout=600)
    seen, store = told.seen, told.store
    assert TOKEN not in told.printed
    assert "adapter_model.safetensors" in seen["pushed"]
    assert seen["pushed again"] == []
    assert seen["pull request"].endswith("/other/reader-ft-par/discussions/1")
    assert 0 <= float(seen["row"]) <= 1
    assert seen["plain"] > 0
    assert seen["verified"] == "me/reader-ft-par"

    card = store.files("me/reader-ft-par")["README.md"].decode()
    assert f"| this + RAG | k=2, bm25 | {float(seen['row']):.3f} |" in card
    everything = b"".join(data for repo in store.repos.values() for data in store.files(repo.id, repo.type).values())
    assert TOKEN.encode() not in everything
    assert str(tmp_path).encode() not in everything
