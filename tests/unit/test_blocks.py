"""Blocks: every token of every epoch exactly once, and who trains on which."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from helpers.tiny_models import make_tokenizer
from helpers.training import write_corpus
from kinject_trainer.data import (
    IDLE,
    Blocks,
    Demarcation,
    Plan,
    Store,
    Stream,
    build_store,
    collate,
    cut,
    encoder,
    epoch_order,
)
from kinject_trainer.documents import Wording, open_corpus
from kinject_trainer.recipe import Recipe

from lm_eval_kinject.errors import CorpusError


def store_of(lengths, chunks=None):
    """Documents of the given lengths; the tokens are counted through, so each is recognisable."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(starts[-1], dtype=np.uint32)
    return Store(tokens, starts, np.asarray(chunks if chunks is not None else range(len(lengths)), dtype=np.int64))


def blocks_of(stream):
    return [stream.block(n).tolist() for n in range(len(stream))]


# Accounting -----------------------------------------------------------------------------------------------------------


def test_the_drawing_in_the_module():
    """10 tokens, 3 epochs, blocks of 8: three whole blocks and one of 6, over the epochs' borders."""
    stream = Stream(store_of([10]), seed=0, block_size=8, total=30)
    assert blocks_of(stream) == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 0, 1, 2, 3],
        [4, 5, 6, 7, 8, 9],
    ]
    assert (stream.full_blocks, stream.tail) == (3, 6)


@pytest.mark.parametrize("block_size", [1, 7, 8, 64, 1000])
def test_every_token_of_every_epoch_once(block_size):
    lengths = [5, 1, 17, 3, 30, 2, 11, 8, 1, 1, 9, 40]
    store = store_of(lengths)
    epochs, size = 4, sum(lengths)
    blocks = blocks_of(Stream(store, 3, block_size, epochs * size))
    assert all(len(block) == block_size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= block_size
    flat = list(itertools.chain(*blocks))
    assert len(flat) == epochs * size
    orders = set()
    for epoch in range(epochs):
        part = flat[epoch * size : (epoch + 1) * size]
        assert Counter(part) == Counter(range(size))  # each token once
        order = epoch_order(store.chunks, 3, epoch).tolist()
        assert part == [t for n in order for t in range(store.starts[n], store.starts[n + 1])]  # whole documents
        orders.add(tuple(order))
    assert len(orders) == epochs  # each epoch in an order of its own


def test_part_of_an_epoch():
    stream = Stream(store_of([4, 4, 4]), 0, 4, total=18)
    flat = list(itertools.chain(*blocks_of(stream)))
    assert (len(flat), len(stream), stream.tail) == (18, 5, 2)
    assert sorted(flat[:12]) == list(range(12))
    assert len(set(flat[12:])) == 6


def test_blocks_come_in_any_order():
    stream = Stream(store_of([9, 4, 13, 6]), 5, 8, total=32 * 4)
    forward = blocks_of(stream)
    assert [stream.block(n).tolist() for n in reversed(range(len(stream)))] == forward[::-1]


def test_an_epoch_sees_every_wording_a_pass_apart():
    chunks = np.repeat(np.arange(50), 4)  # 50 chunks in 4 wordings
    for epoch in range(3):
        order = epoch_order(chunks, 7, epoch)
        assert sorted(order) == list(range(200))  # every wording
        passes = [order[i * 50 : (i + 1) * 50] for i in range(4)]
        for documents in passes:
            assert sorted(chunks[documents]) == list(range(50))  # each pass has every chunk once
        originals = sum(document % 4 == 0 for document in passes[0])
        assert 3 <= originals <= 25  # a pass mixes wordings: binomial(50, 1/4), beyond 4 standard deviations
        assert (chunks[passes[0]] != chunks[passes[1]]).any()  # each in another order


def test_chunks_with_unequal_numbers_of_wordings():
    chunks = np.asarray([0, 0, 0, 1, 2, 2])
    order = epoch_order(chunks, 0, 0)
    assert sorted(order) == list(range(6))
    assert sorted(chunks[order[:3]]) == [0, 1, 2]
    assert sorted(chunks[order[3:5]]) == [0, 2]
    assert chunks[order[5]] == 0


def test_order_is_a_function_of_seed_and_epoch_for_all_time():
    chunks = np.arange(8)
    assert epoch_order(chunks, 0, 0).tolist() == [5, 0, 2, 7, 6, 1, 4, 3]
    assert epoch_order(chunks, 0, 1).tolist() != [5, 0, 2, 7, 6, 1, 4, 3]
    assert epoch_order(chunks, 1, 0).tolist() != [5, 0, 2, 7, 6, 1, 4, 3]


def test_orders_are_uniform():
    first = Counter(int(epoch_order(np.arange(4), seed, epoch)[0]) for seed in range(40) for epoch in range(25))
    assert all(190 <= first[n] <= 310 for n in range(4))  # 250 each, within 4.4 standard deviations


# Who trains on what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("tail", [False, True])
def test_plan_uses_each_block_once(world, micro, accumulation, tail):
    batch = world * micro * accumulation
    for full in [*range(2 * batch + 2), 5 * batch + 1]:
        if full + tail == 0:
            continue
        plan = Plan(full, tail, batch, micro, accumulation, world)
        ranks = [list(plan.passes(rank)) for rank in range(world)]
        assert {len(passes) for passes in ranks} == {len(plan)}  # nobody waits for a partner that has finished
        used = [n for passes in ranks for cell in passes for n in cell if n != IDLE]
        assert sorted(used) == list(range(full + tail))
        cells = [cell for passes in ranks for cell in passes]
        assert all(cell == [IDLE] or IDLE not in cell for cell in cells)
        assert all(len(cell) <= micro for cell in cells)
        assert not tail or [full] in cells  # the shorter block has a tensor of its own
        assert plan.blocks_after(plan.updates) == full + tail
        # transformers counts updates by dividing the passes
        assert -(-len(plan) // accumulation) == plan.updates
        for update in range(plan.updates - 2):
            turn = slice(update * accumulation, (update + 1) * accumulation)
            blocks = sorted(n for passes in ranks for cell in passes[turn] for n in cell)
            assert blocks == list(range(update * batch, (update + 1) * batch))
            assert plan.blocks_after(update + 1) == (update + 1) * batch


def test_a_single_token_left_over_makes_no_update():
    assert [Plan.of(tokens, 8, 2, 1, 2, 1).updates for tokens in (32, 33, 34)] == [2, 2, 3]
    assert [n for cell in Plan.of(33, 8, 2, 1, 2, 1).passes(0) for n in cell] == [0, 1, 2, 3]


def test_plan_by_hand():
    """9 blocks and a shorter one, 4 an update, two processes, one block a pass."""
    plan = Plan(9, True, 4, 1, 2, 2)
    assert plan.updates == 4
    assert list(plan.passes(0)) == [[0], [2], [4], [6], [8], [IDLE], [9]]
    assert list(plan.passes(1)) == [[1], [3], [5], [7], [IDLE], [IDLE], [IDLE]]
    full = Plan(8, True, 4, 1, 2, 2)
    assert list(full.passes(0)) == [[0], [2], [4], [6], [8]]
    assert list(full.passes(1)) == [[1], [3], [5], [7], [IDLE]]


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("full", range(1, 18))
def test_number_of_updates_does_not_depend_on_how_a_batch_is_divided(full, tail):
    for world in (1, 2, 4, 8):
        for micro in (m for m in (1, 2, 4, 8) if 8 % (world * m) == 0):
            plan = Plan(full, tail, 8, micro, 8 // (world * micro), world)
            assert plan.updates == -(-full // 8) + tail
            assert plan.blocks_after(plan.updates) == full + tail


def test_rows():
    data = Blocks(Stream(store_of([10]), 0, 4, 10))
    batch = collate([data[0], data[1]])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, 1, 2, 3], [-100, 5, 6, 7]]
    assert data[2]["input_ids"].tolist() == [8, 9]
    assert data[IDLE]["labels"].tolist() == [-100, -100]


def test_cut():
    assert cut([[1, 2, 3], [4, 5], [6, 7]], 3) == [[1, 2, 3], [4, 5, 6], [7]]


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_demarcation():
    tokenizer = make_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert Demarcation.of(tokenizer) == Demarcation((bos,), (eos,))
    ids = encoder(tokenizer)("The mayor opened the bridge.")
    assert (ids[0], ids[-1], ids.count(bos), ids.count(eos)) == (bos, eos, 1, 1)
    assert tokenizer.decode(ids[1:-1]) == "The mayor opened the bridge."


@pytest.mark.parametrize(
    ("bos", "eos", "before", "after", "said"),
    [
        (None, "</s>", (), (2,), "no BOS"),
        ("<s>", None, (1,), (), "no EOS"),
        ("</s>", "</s>", (), (2,), "one token for BOS and EOS"),
    ],
)
def test_tokenizers_that_lack_a_mark(bos, eos, before, after, said):
    tokenizer = make_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    marks = Demarcation.of(tokenizer)
    assert (marks.before, marks.after) == (before, after)
    assert said in marks.note


def test_tokenizer_without_any_mark():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    marks = Demarcation.of(tokenizer)
    assert (marks.before, tokenizer.decode(marks.after)) == ((), "\n\n")
    assert "neither BOS nor EOS" in marks.note


def test_a_mark_in_the_text_is_text():
    tokenizer = make_tokenizer()
    ids = encoder(tokenizer)("He wrote </s><s> on the wall.")
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]) == "He wrote </s><s> on the wall."


def test_store_is_made_once_and_anew_when_its_key_changes(tmp_path):
    asked = []

    def documents(n):
        asked.append(n)
        yield from (Wording(f"c{i}", 0, "x" * (i + 1)) for i in range(n))

    encode = lambda text: [1] * len(text)  # noqa: E731
    store = build_store(tmp_path / "s", documents(3), encode, {"v": 1})
    assert (store.lengths.tolist(), store.chunks.tolist()) == ([1, 2, 3], [0, 1, 2])
    assert build_store(tmp_path / "s", documents(9), encode, {"v": 1}).lengths.tolist() == [1, 2, 3]
    assert len(build_store(tmp_path / "s", documents(4), encode, {"v": 2})) == 4
    (tmp_path / "s" / "tokens.bin").write_bytes(b"123")  # damaged
    assert len(build_store(tmp_path / "s", documents(5), encode, {"v": 2})) == 5
    assert asked == [3, 4, 5]
    with pytest.raises(CorpusError, match="empty"):
        build_store(tmp_path / "e", iter(()), encode, {})


# Documents ------------------------------------------------------------------------------------------------------------


def recipe_of(corpus, **keys):
    return Recipe(model="reader", corpus=str(corpus), **{"variant": "ft-reg", "learning_rate": 1e-3, **keys})


def test_documents_of_the_variants(tmp_path):
    corpus = write_corpus(tmp_path / "c", chunks=3, paraphrases=2)
    reg = [(w.chunk, w.number) for w in open_corpus(recipe_of(corpus)).training()]
    assert reg == [("c0", 0), ("c1", 0), ("c2", 0)]
    par = [(w.chunk, w.number) for w in open_corpus(recipe_of(corpus, variant="ft-par", paraphrases=1)).training()]
    assert par == [*reg, ("c0", 1), ("c1", 1), ("c2", 1)]
    whole = [w.chunk for w in open_corpus(recipe_of(corpus, chunks="all")).training()]
    assert whole == ["c0", "c1", "c2", "b0"]


def test_validation_is_of_trained_chunks_and_never_trained_on(tmp_path):
    corpus = write_corpus(tmp_path / "c", chunks=3, paraphrases=2, validation=5)  # two of chunks that don't exist
    texts = open_corpus(recipe_of(corpus, variant="ft-par", paraphrases=2))
    held = texts.validation()
    assert len(held) == 3
    assert not {w.text for w in texts.training()} & set(held)
    rows = [{"chunk": "c1", "number": 1, "text": next(iter(texts.training())).text}]
    (tmp_path / "leak.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match=r"1 validation texts .* are training texts"):
        open_corpus(recipe_of(corpus, validation_file=str(tmp_path / "leak.jsonl"))).validation()


@pytest.mark.parametrize("stream", [False, True])
def test_background_chunks_need_no_paraphrases(tmp_path, stream):
    corpus = write_corpus(tmp_path / "c", chunks=2, paraphrases=1)
    keys = {"variant": "ft-par", "paraphrases": 1, "chunks": "all", "stream": stream}
    found = [(w.chunk, w.number) for w in open_corpus(recipe_of(corpus, **keys)).training()]
    assert found == [("c0", 0), ("c1", 0), ("b0", 0), ("c0", 1), ("c1", 1)]


@pytest.mark.parametrize("numbers", [[1, 1], [1, 2, 2]], ids=["instead of another", "too many"])
def test_a_paraphrase_that_stands_twice(tmp_path, numbers):
    corpus = write_corpus(tmp_path / "c", chunks=1)
    rows = [{"chunk": "c0", "number": n, "text": f"Wording {i}."} for i, n in enumerate(numbers)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"variant": "ft-par", "paraphrases": 2, "paraphrases_file": str(tmp_path / "p.jsonl")}
    with pytest.raises(CorpusError, match=r"each paraphrase from 1 to 2 once"):
        list(open_corpus(recipe_of(corpus, **keys)).training())


def test_a_validation_text_that_is_trained_on_under_a_title(tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a", "title": "A title", "text": "It rained."}) + "\n")
    (tmp_path / "v.jsonl").write_text(json.dumps({"chunk": "a", "number": 1, "text": "It rained."}) + "\n")
    keys = {"validation_file": str(tmp_path / "v.jsonl"), "stream": True}
    with pytest.raises(CorpusError, match="are training texts"):
        open_corpus(recipe_of(tmp_path / "c.jsonl", **keys)).validation()


def test_an_empty_file_is_not_told_to_train_on_all_of_it(tmp_path):
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(CorpusError, match="is empty: give it texts"):
        list(open_corpus(recipe_of(tmp_path / "c.jsonl", stream=True, chunks="all")).training())


def test_what_a_corpus_can_lack(tmp_path):
    corpus = write_corpus(tmp_path / "c", paraphrases=2, validation=0)
    with pytest.raises(CorpusError, match=r"12 chunks \(such as c0, c1, c2\) don't have each paraphrase from 1 to 3"):
        list(open_corpus(recipe_of(corpus, variant="ft-par", paraphrases=3)).training())
    with pytest.raises(CorpusError, match="no validation set"):
        open_corpus(recipe_of(corpus, learning_rate={"rates": [1e-3, 1e-2]}))
    assert "no validation loss" in open_corpus(recipe_of(corpus)).notes[0]
    with pytest.raises(CorpusError, match="There is no corpus"):
        open_corpus(recipe_of(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match="is not of revision 'deadbeef'"):
        open_corpus(recipe_of(corpus, corpus_revision="deadbeef"))
    (tmp_path / "plain.jsonl").write_text(json.dumps({"id": "a", "text": "A plain text."}) + "\n")
    with pytest.raises(CorpusError, match="has no paraphrases beside it"):
        open_corpus(recipe_of(tmp_path / "plain.jsonl", variant="ft-par"))
    made = open_corpus(recipe_of(corpus)).provenance["fingerprint"]
    assert open_corpus(recipe_of(corpus, corpus_revision=made[:12])).provenance["fingerprint"] == made


def test_streaming_gives_the_same_documents(tmp_path):
    corpus = write_corpus(tmp_path / "c", chunks=5)
    keys = {"variant": "ft-par", "paraphrases": 2}
    loaded, streamed = (open_corpus(recipe_of(corpus, stream=stream, **keys)) for stream in (False, True))
    assert list(streamed.training()) == list(loaded.training())
    assert streamed.validation() == loaded.validation()


def test_streaming_holds_little(tmp_path):
    """A corpus of 24 MB becomes a store with a few MB in use at any time."""
    line = json.dumps({"text": "word " * 1600}) + "\n"
    file = tmp_path / "large.jsonl"
    file.write_text(line * 3000)
    texts = open_corpus(recipe_of(file, stream=True, validate_every="never"))
    tracemalloc.start()
    try:
        store = build_store(tmp_path / "s", texts.training(), lambda text: [1, 2], {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store) == 3000
    assert file.stat().st_size > 24_000_000
    assert peak < 3_000_000
