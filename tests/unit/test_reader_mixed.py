"""The reader's training on an edition with a mixed phase: what is in a step, and what the options do."""

from __future__ import annotations

import collections
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from kinject_trainer.errors import TrainingError
from kinject_trainer.forgetting import old_world
from kinject_trainer.reader import endurance as endurance_module
from kinject_trainer.reader import pretrain
from kinject_trainer.reader import probe as probe_module
from kinject_trainer.reader.average import Average
from kinject_trainer.reader.endurance import endurance
from kinject_trainer.reader.mixture import BLOCK, Mixture, Shares, edition_of, training_kinds
from kinject_trainer.reader.pretrain import dropout, learning_rate, new_model, parser, train
from kinject_trainer.reader.probe import probe
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from lm_eval_kinject.corpus.sources.newswire.realise import realise, states
from lm_eval_kinject.corpus.sources.newswire.world import World
from lm_eval_kinject.plugin import assets_dir

READER = assets_dir() / "reader"
NOTHING = ",".join(f"{one.name}=0" for one in fields(Shares))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(READER)


@pytest.fixture(scope="module")
def mixture(tokenizer: PreTrainedTokenizerBase) -> Mixture:
    return Mixture(tokenizer, edition=2)


# What is in a step ----------------------------------------------------------------------------------------------------


def test_shares_are_micro_batches_a_step(tokenizer: PreTrainedTokenizerBase) -> None:
    shares = Shares.parse(f"{NOTHING},statements=2,plain_news=1.25")
    mixed = Mixture(tokenizer, edition=2, shares=shares)
    found: collections.Counter[str] = collections.Counter()
    for step in (*range(100), *range(3100, 3200)):  # the last steps as the first
        found.update(batch.name for batch in mixed.step("mixed", step, step / 3200, 512))
    assert set(found) == {"statements", "plain news"}
    assert found["statements"] == 400
    assert 225 <= found["plain news"] <= 275  # 250 and four standard deviations of 200 draws at a quarter
    rare = Mixture(tokenizer, edition=2, shares=Shares(0, 0, 0, 0, 0, 0, 0.01))
    assert all(len(rare.step("mixed", step, 0.5, 512)) == 1 for step in range(20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain=1", "'plain' is no share; name some of option_texts, letters"),
        ("letters=x", "could not convert"),
        ("letters=-1", "from 0 to 20"),
        (NOTHING, "all shares are 0"),
    ],
)
def test_shares_that_mean_nothing(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shares.parse(text)


def test_plain_news_is_what_continued_pretraining_trains_on(mixture: Mixture) -> None:
    """Blocks of 256 that follow each other in one stream of whole documents between BOS and EOS, all of full weight."""
    bos, eos = mixture.tokenizer.bos_token_id, mixture.tokenizer.eos_token_id
    rows = mixture.plain_rows(random.Random(1), 8)
    assert [len(row.ids) for row in rows] == [BLOCK] * 8 == [256] * 8
    assert [row.weights for row in rows] == [[0.0] + [1.0] * 255] * 8
    ids = [token for row in rows for token in row.ids]
    assert all(ids[i + 1] == bos for i in range(len(ids) - 1) if ids[i] == eos)
    documents = mixture.tokenizer.decode(ids).split("</s><s>")[1:-1]
    assert len(documents) >= 4
    events = [e for world in mixture.reading_worlds for e in world.events]
    for text in documents:
        assert text[0].isupper()
        assert text[-1] == "."
        assert "Question" not in text
        assert any(all(states(text, e.values[slot]) for slot in e.kind.anchor) for e in events)


def test_a_question_of_two_chunks_stands_behind_both(mixture: Mixture) -> None:
    for letters in (False, True):
        row = mixture.two_chunks_row(letters, random.Random(3))
        text = mixture.tokenizer.decode(row.ids)
        told = [one for world in mixture.consequences for one in world if one.event.values["thing"] in text]
        pairs = [one for one in told if one.origin.name in text]
        assert len(pairs) == 2
        assert len(row.spans) == 4
        start = text.index("Question:") if not letters else text.index("\nA. ")
        answers = [mixture.tokenizer.decode(row.ids[a:b]) for a, b in row.spans]
        for one in pairs:
            assert one.event.values["thing"] in text[:start]
            assert one.answer in text[:start]
            assert letters or f" {one.answer}" in answers


def test_the_bundled_tokenizer_covers_edition_2(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its pieces were learnt on edition 1; a word of edition 2 takes no more of them."""
    rates = []
    for edition in (1, 2):
        texts = [realise(e, 0, stream="reader") for e in World(77, training_kinds(edition), 480, "reader").events]
        words = sum(len(text.split()) for text in texts)
        rates.append(sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts) / words)
    assert rates[1] <= 1.03 * rates[0]


def test_the_old_world_is_that_of_the_edition(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = (old_world(tokenizer, edition) for edition in (1, 2))
    assert len(first) == len(second) == 240
    assert not {q.prompt for q in first} & {q.prompt for q in second}


def test_the_probe_reads_recalls_and_names_letters(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "_ROWS", 1)
    found = probe(new_model(tokenizer, 0), mixture)
    worlds = ("known wordings", "held-out phrasings", "held-out kinds")
    assert set(found) == {
        *(f"{form}, k=3, {world}" for form in ("cloze", "letters") for world in worlds),
        "cloze, k=1, known wordings",
        "recall, trained questions",
        "recall, stated only",
    }
    assert all(0 <= share <= 1 for share in found.values())
    assert {world.edition for world in probe_module.probe_worlds(2).values()} == {2}


# Options --------------------------------------------------------------------------------------------------------------


def test_averages_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    found = {}
    for how in ("none", "ema:0.75", "mean:0.5"):
        average = Average(how, 4)
        for step, value in enumerate((1.0, 2.0, 4.0, 8.0)):
            model.weight.data.fill_(value)
            average.add(model, step)
        with average.applied(model):
            found[how] = model.weight.item()
        assert model.weight.item() == 8.0
    # ema: 1; 1.25; 1.9375; 3.453125
    assert found == {"none": 8.0, "ema:0.75": 3.453125, "mean:0.5": 6.0}
    for wrong in ("ema", "ema:1", "mean:0", "none:1", "last:3"):
        with pytest.raises(ValueError):
            Average(wrong, 4)


def test_the_rate_falls_to_its_last_value() -> None:
    assert learning_rate(0, 1000, 0.1) == 1 / 60
    assert learning_rate(500, 1000, 0.1) == 1.0
    assert learning_rate(850, 1000, 0.1) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(999, 1000, 0.1) == pytest.approx(0.1 + 0.9 / 300)
    assert learning_rate(999, 1000) == pytest.approx(1 / 300)


def test_dropout_drops_while_training_and_is_gone_behind_it(tokenizer: PreTrainedTokenizerBase) -> None:
    model = new_model(tokenizer, 0)
    ids = torch.arange(3, 43)[None]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    model.train()
    plain = logits()
    with dropout(model, 0.5):
        assert not torch.equal(logits(), plain)
        model.eval()
        assert torch.equal(logits(), plain)
        model.train()
    assert torch.equal(logits(), plain)


def test_a_width_that_fits_on_disk(tokenizer: PreTrainedTokenizerBase) -> None:
    model = new_model(tokenizer, 0, 256)
    assert (model.config.num_attention_heads, model.config.head_dim, model.config.intermediate_size) == (4, 64, 704)
    # embeddings 2048 x 256; six layers of four projections, three of the MLP and two norms; the last norm
    assert sum(p.numel() for p in model.parameters()) == 2048 * 256 + 6 * (4 * 256**2 + 3 * 256 * 704 + 512) + 256
    with pytest.raises(TrainingError, match=r"--width 320 makes 15\.\d MB of weights; 12 are allowed"):
        new_model(tokenizer, 0, 320)
    with pytest.raises(TrainingError, match="multiple of 64, 128 at least"):
        new_model(tokenizer, 0, 200)


def arguments(out: Path, said: str = "") -> Any:
    common = f"--out {out} --edition 2 --start {READER} --mixed-steps 3 --tokens 100 --save-minutes 0 "
    return parser().parse_args((common + said).split())


def test_a_resumed_mixed_training_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "probe", lambda model, mixture: {})
    said = f"--dropout 0.1 --average ema:0.5 --final-rate 0.2 --shares {NOTHING},plain_news=1"
    train(arguments(tmp_path / "whole", said))
    clip, calls = torch.nn.utils.clip_grad_norm_, 0

    def killing_clip(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return clip(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", killing_clip)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(tmp_path / "resumed", said))
    assert not (tmp_path / "resumed" / "model").exists()
    with pytest.raises(TrainingError, match=r"other settings \(dropout: 0\.1\)"):
        train(arguments(tmp_path / "resumed", said.replace("--dropout 0.1", "--dropout 0.2")))
    train(arguments(tmp_path / "resumed", said))
    files = [tmp_path / folder / "model" / "model.safetensors" for folder in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert edition_of(tmp_path / "whole" / "model") == 2
    assert edition_of(READER) in (1, 2)
    # What is saved is the average, in bf16, and not the last step.
    kept = torch.load(tmp_path / "whole" / "mixed.pt", weights_only=True)
    saved = LlamaForCausalLM.from_pretrained(tmp_path / "whole" / "model", dtype=torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(saved.state_dict()[name], kept["average"]["weights"][name].bfloat16().float())
    assert not torch.equal(saved.state_dict()[name], kept["model"][name].bfloat16().float())


def test_batches_made_beside_the_training_are_the_same(mixture: Mixture, tmp_path: Path) -> None:
    shares = Shares.parse(f"{NOTHING},plain_news=1")
    mixed = Mixture(mixture.tokenizer, edition=2, shares=shares)
    found = list(pretrain._batches(mixed, "mixed", 1, 4, arguments(tmp_path, "--workers 2")))
    assert found == [mixed.step("mixed", step, step / 4, 100) for step in (1, 2, 3)]


@pytest.mark.parametrize(
    ("said", "match"),
    [("--shares plain=1", "plain"), ("--average last:3", "no average"), ("--dropout 1", "--dropout"),
     ("--width 256", "no effect with --start")],
)  # fmt: skip
def test_settings_that_can_not_be(said: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=match):
        train(arguments(tmp_path / "run", said))
    assert not (tmp_path / "run").exists()


def test_what_is_left_after_training(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is trained, for as many updates as there are sixteens of blocks; the model itself stays as it is."""
    monkeypatch.setattr(endurance_module, "_blocks", lambda world, of: [[3] * BLOCK] * 17)
    model = LlamaForCausalLM.from_pretrained(READER, dtype=torch.float32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = endurance(model, tokenizer, 2, events=144, questions=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    names = ("reading", "closed book", "old world")
    assert set(found) == {"updates", *(f"{name}, {when}" for name in names for when in ("before", "after"))}
    assert found["updates"] == 2
    assert all(found[name] in (0.0, 1.0) for name in found if name != "updates")


def test_the_small_world_is_asked_about_behind_its_chunks_and_without(tokenizer: PreTrainedTokenizerBase) -> None:
    world = World(endurance_module.SEED, training_kinds(2), 192, "reader")
    read, known = (endurance_module._questions(world, tokenizer, 40, k) for k in (3, 0))
    for shown, bare in zip(read, known, strict=True):
        assert (shown.options, shown.answer) == (bare.options, bare.answer)
        context, asked = tokenizer.decode(shown.prompt), tokenizer.decode(bare.prompt).removeprefix("<s>")
        assert asked.startswith("Question: ")
        assert context.endswith(f"\n\n{asked}")
        assert context.count("\n\n") == 3
        assert states(context.removesuffix(asked), tokenizer.decode(shown.options[shown.answer]).strip())
    blocks = endurance_module._blocks(world, tokenizer)
    assert {len(block) for block in blocks} == {256}
    stream = tokenizer.decode([token for block in blocks for token in block])
    texts = [realise(e, n, stream="endurance") for e in world.events for n in range(endurance_module.WORDINGS)]
    times = [stream.count(f"<s>{text}</s>") for text in texts]
    assert sum(times) >= 3 * len(texts) - 2  # each in three epochs, but for what is cut off at the end
    assert max(times) == 3
