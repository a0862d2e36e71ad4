"""A cartridge starts as a prompt, is taught by the base that has the chunk before it, and alone is trained."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import SLIDING_WINDOW, make_tiny, make_tokenizer
from helpers.training import run, text, write_corpus, write_recipe
from kinject_trainer.base import Base, load_model, skeleton, with_adapter
from kinject_trainer.cartridge import divergence, fill, untrained
from kinject_trainer.command import train
from kinject_trainer.data import IDLE, Stream
from kinject_trainer.documents import Wording
from kinject_trainer.recipe import Recipe
from kinject_trainer.selfstudy import Lessons, collate_lessons, opening, study
from transformers import AutoModelForCausalLM, MambaConfig

from lm_eval_kinject.errors import CorpusError, ModelError
from lm_eval_kinject.provenance import read_json

WORDINGS = [Wording(f"c{i}", n, text(i, n)) for n in range(2) for i in range(4)]


def recipe_of(tokens, **keys):
    return Recipe(
        model="m", corpus="c", variant="ft-reg", learning_rate=1e-3, method="cartridge",
        cartridge={"tokens": tokens, **keys},
    )  # fmt: skip


def with_cartridge(folder, arch, ids, **keys):
    base = Base("m", Path(make_tiny(arch, folder)), "")
    recipe = recipe_of(len(ids), **keys)
    model = with_adapter(load_model(base, recipe), recipe).eval()
    fill(model, ids)
    return model


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen3", "gemma3", "phi", "gpt2", "gpt_neox"])
def test_it_starts_as_the_prompt_of_its_tokens(tmp_path, arch):
    """Positions, masks and grouped heads included; compared with the plain model, loaded anew."""
    ids = opening(WORDINGS, make_tokenizer(arch), 23)
    rest = torch.arange(100, 140).reshape(2, 20)
    plain = AutoModelForCausalLM.from_pretrained(make_tiny(arch, tmp_path)).eval()
    with torch.no_grad():
        wanted = plain(torch.cat([torch.tensor([ids, ids]), rest], 1)).logits[:, 23:].log_softmax(-1)
        model = with_cartridge(tmp_path, arch, ids)
        found = model(input_ids=rest).logits.log_softmax(-1)
        without = plain(rest).logits.log_softmax(-1)
    assert float((found - wanted).abs().max()) < 1e-4
    assert float((without - wanted).abs().max()) > 0.1


def test_the_opening_is_the_corpus_from_its_first_token():
    tokenizer = make_tokenizer("llama")
    whole = [1, *tokenizer.encode(f"{text(0, 0)}\n\n", add_special_tokens=False)]
    whole += tokenizer.encode(f"{text(1, 0)}\n\n", add_special_tokens=False)
    assert opening(WORDINGS, tokenizer, len(whole) - 3) == whole[:-3]
    assert opening(WORDINGS, make_tokenizer("qwen3"), 5) == whole[1:6]  # no BOS in front of its prompts
    with pytest.raises(CorpusError, match=r"has \d+: lower cartridge\.tokens \(now 5000\)"):
        opening(WORDINGS, tokenizer, 5000)


def taught(base, batch):
    with torch.no_grad():
        return base(input_ids=batch["taught"]).logits


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_nothing_is_left_to_learn_where_the_student_sees_what_the_teacher_sees(tmp_path, arch):
    """A cartridge that is the chunk: with BOS, which the teacher has once, the student has it in the middle, too."""
    made = study(WORDINGS, make_tokenizer(arch), each=5, seed=0, block_size=96)
    stream = Stream(made.store, 0, 96, len(made.store) * 96)
    lessons = Lessons(stream, made)
    rows = [n for n in range(len(stream)) if made.store.chunks[stream.document_of(n)] == 2]
    assert len(rows) == 5
    batch = collate_lessons([lessons[n] for n in rows])
    model = with_cartridge(tmp_path, arch, made.chunks[2])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"][:, made.lead :]).logits
    loss = divergence(
        logits, taught(untrained(model), batch), batch["labels"][:, made.lead :], batch["shift"] + made.lead
    )
    assert abs(float(loss)) < 1e-6
    another = with_cartridge(tmp_path, arch, made.chunks[1])
    with torch.no_grad():
        logits = another(input_ids=batch["input_ids"][:, made.lead :]).logits
    loss = divergence(
        logits, taught(untrained(model), batch), batch["labels"][:, made.lead :], batch["shift"] + made.lead
    )
    assert float(loss) > 0.01


def test_divergence_by_hand():
    """Two rows, the teacher's one place behind in the second; KL(½, ½ ‖ ¼, ¾) = ½ ln 2 + ½ ln ⅔."""
    half, quarter = [0.0, 0.0], [0.0, torch.tensor(3.0).log().item()]
    other = [9.0, -9.0]
    student = torch.tensor([[quarter, other, other], [quarter, half, other]])
    teacher = torch.tensor([[half, other, other, other], [other, half, half, other]])
    labels = torch.tensor([[-100, 7, -100], [-100, 7, 7]])
    one = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    found = divergence(student, teacher, labels, torch.tensor([0, 1]))
    torch.testing.assert_close(found, 2 * one / 3)
    torch.testing.assert_close(divergence(student, teacher, labels, torch.tensor([0, 1]), 10), 2 * one / 10)
    nothing = torch.full_like(labels, -100)
    assert float(divergence(student, teacher, nothing, torch.tensor([0, 1]))) == 0


def test_only_the_cartridge_learns_and_its_first_tokens_stay(tmp_path):
    made = study(WORDINGS, make_tokenizer(), each=2, seed=0, block_size=96)
    lessons = Lessons(Stream(made.store, 0, 96, len(made.store) * 96), made)
    batch = collate_lessons([lessons[0], lessons[1]])
    model = with_cartridge(tmp_path, "llama", opening(WORDINGS, make_tokenizer(), 12), frozen=3)
    loss = divergence(
        model(input_ids=batch["input_ids"]).logits, taught(untrained(model), batch), batch["labels"], batch["shift"]
    )
    loss.backward()
    learns = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(learns) == ["prompt_encoder.default.trainable_embedding"]
    assert learns["prompt_encoder.default.trainable_embedding"].shape == (
        9,
        2 * 2 * 2 * 8,
    )  # layers, k and v, 2 heads of 8

    assert bool((learns["prompt_encoder.default.trainable_embedding"].abs().sum(1) > 0).all())


def test_it_learns(tmp_path):
    """The same few lessons over and over, by plain Adam: the student comes nearer to the teacher."""
    made = study(WORDINGS, make_tokenizer(), each=2, seed=0, block_size=96)
    lessons = Lessons(Stream(made.store, 0, 96, len(made.store) * 96), made)
    batch = collate_lessons([lessons[0], lessons[1]])
    model = with_cartridge(tmp_path, "llama", opening(WORDINGS, make_tokenizer(), 12))
    teacher, losses = taught(untrained(model), batch), []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(40):
        loss = divergence(model(input_ids=batch["input_ids"]).logits, teacher, batch["labels"], batch["shift"])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_lesson_as_the_data_set_gives_it():
    tokenizer = make_tokenizer("llama")
    made = study(WORDINGS, tokenizer, each=5, seed=1, block_size=96)
    lessons = Lessons(Stream(made.store, 1, 96, len(made.store) * 96), made)
    number = 7
    item, lesson = lessons[number], lessons.stream.document_of(number)
    chunk = int(made.store.chunks[lesson])
    start, end = made.answers[lesson]
    answer = item["labels"][item["labels"] != -100]
    assert torch.equal(answer, item["input_ids"][start:end])
    assert item["input_ids"][0] == 1
    assert (item["input_ids"][end:] == 0).all()
    front = [1, *tokenizer.encode(f"{text(chunk, 0)}\n\n", add_special_tokens=False)]
    assert item["taught"].tolist() == [*front, *item["input_ids"][1:end].tolist()]
    assert int(item["shift"]) == len(front) - 1
    assert lessons[IDLE]["labels"].tolist() == [-100, -100]
    # An epoch is every lesson once.
    assert sorted(lessons.stream.document_of(n) for n in range(20)) == list(range(20))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cartridge")
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus", chunks=4, validation=2)


def recipe_file(place, name, **changes):
    folder, model, corpus = place
    keys = {"method": "cartridge", "block_size": 96, "learning_rate": 1e-2, "checkpoint_every": 2, "seed": 3, **changes}
    return write_recipe(folder / f"{name}.yaml", model, corpus, **keys)


@pytest.mark.parametrize("objective", ["distillation", "next-token"])
def test_killed_and_resumed_it_has_the_same_bits(place, tmp_path, objective):
    made, size = {"tokens": 10, "frozen": 2, "objective": objective}, 96 if objective == "distillation" else 16
    recipe = recipe_file(
        place, objective, cartridge=made, **({} if objective == "distillation" else {"block_size": 16})
    )
    assert run(recipe, tmp_path / "whole") == 0
    assert run(recipe, tmp_path / "killed", kill="update 3") == -signal.SIGKILL
    if objective == "distillation":
        assert run(recipe, tmp_path / "killed", kill="between old and new", resume=True) == -signal.SIGKILL
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == other
    record = read_json(tmp_path / "whole" / "kinject.json")
    assert record["cartridge"]["tokens"] == 10
    assert record["outcome"]["trainable_parameters"] == 8 * 2 * 2 * 16
    config = read_json(tmp_path / "whole" / "adapter_config.json")
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("CARTRIDGE", 10)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "a cartridge of 10 tokens' keys and values" in card
    assert ("with padding" in card) == (objective == "distillation")
    # The base is as it was, so what it lost is measured against the base without a cartridge.
    assert record["outcome"]["validation_loss_before"] == pytest.approx(validation_loss(place, size), abs=1e-5)


def validation_loss(place, size):
    """Of the plain model, by transformers' own loss, over the blocks of the two validation texts."""
    from kinject_trainer.data import cut, encoder

    _, model, _ = place
    encode = encoder(make_tokenizer())
    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    total = count = 0.0
    for block in cut([encode(text(i, 4)) for i in range(2)], size):
        ids = torch.tensor([block])
        with torch.no_grad():
            total += float(plain(ids, labels=ids).loss) * (len(block) - 1)
        count += len(block) - 1
    return total / count


def test_lm_eval_scores_it_and_takes_it_off_again(place, tmp_path):
    """Through `peft=`, by lm_eval's own path; a prompt of the same tokens gives the same scores before training."""
    from lm_eval.api.instance import Instance

    from lm_eval_kinject.models.rag_hf import RagHFLM

    _, model, _ = place
    ids = opening(WORDINGS, make_tokenizer(), 12)
    with_cartridge(tmp_path, "llama", ids).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "llama-0-2048")
    lm = RagHFLM(pretrained=model, peft=str(tmp_path / "adapter"), device="cpu", batch_size=2, k=0)
    assert lm.max_length == 2048 - 12
    asked = [
        ("Who opened the bridge?", " Anna"),
        ("Who opened the bridge?", " the council of the town"),
        ("Where", " at"),
    ]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    assert "virtual tokens in front" in lm._shared_scorer().stats.reason
    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    for (context, answer), (score, _) in zip(asked, found, strict=True):
        before, after = lm.tok_encode(context), lm.tok_encode(answer, add_special_tokens=False)
        with torch.no_grad():
            logits = plain(torch.tensor([[*ids, *before, *after]])).logits[0].log_softmax(-1)
        places = range(len(ids) + len(before) - 1, len(ids) + len(before) + len(after) - 1)
        assert score == pytest.approx(sum(float(logits[p, t]) for p, t in zip(places, after, strict=True)), abs=1e-4)
    # Generation, in one batch padded on the left: greedy, as the plain model goes on from all the tokens.
    told = [
        Instance("generate_until", {}, (c, {"until": [], "max_gen_toks": 4}), 0) for c in ("Who opened it?", "Where")
    ]
    for (context, _), said in zip((one.args for one in told), lm.generate_until(told, disable_tqdm=True), strict=True):
        row = [*ids, *lm.tok_encode(context)]
        for _ in range(4):
            with torch.no_grad():
                row.append(int(plain(torch.tensor([row])).logits[0, -1].argmax()))
        assert said == lm.tokenizer.decode(row[-4:], skip_special_tokens=True)
    lm.exchange()
    assert lm.max_length == 2048
    base = RagHFLM(pretrained=model, device="cpu", batch_size=2, k=0)
    assert lm.loglikelihood(requests, disable_tqdm=True) == base.loglikelihood(requests, disable_tqdm=True)


def test_models_that_can_have_none_are_refused_without_their_weights(tmp_path):
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
    with pytest.raises(
        ModelError, match=r"The model m can't have a cartridge: .*Take an adapter, such as method: lora"
    ):
        skeleton(config, recipe_of(4))
    mistral = AutoModelForCausalLM.from_pretrained(make_tiny("mistral", tmp_path)).config
    with pytest.raises(ModelError, match=r"look 48 tokens back, and cartridge\.tokens is 48: take fewer"):
        skeleton(mistral, recipe_of(SLIDING_WINDOW))
    skeleton(mistral, recipe_of(SLIDING_WINDOW - 1))


def test_a_model_that_does_not_take_it_as_a_prompt_is_refused(tmp_path, monkeypatch):
    """Positions that don't go on from the cache: asked of the model itself, before anything is trained."""
    import peft.tuners.cartridge.utils as utils

    with_cartridge(tmp_path, "llama", list(range(20, 40)))
    monkeypatch.setattr(
        utils,
        "initialize_kv_prefix_from_past_key_values",
        lambda model, past_key_values: model.prompt_encoder["default"].load_prompt_embeddings(
            torch.zeros_like(model.prompt_encoder["default"].weight)
        ),
    )
    with pytest.raises(ModelError, match=r"after one made of 20 tokens it doesn't say what it says"):
        with_cartridge(tmp_path, "llama", list(range(20, 40)))


def test_a_dry_run_counts_lessons(place):
    folder, model, corpus = place
    file = write_recipe(
        folder / "dry.yaml", model, corpus, method="cartridge", block_size=96, cartridge={"tokens": 10, "lessons": 3}
    )
    found = train(file, dry_run=True).estimate
    assert (found.documents, found.epoch_tokens, found.tokens, found.blocks) == (12, 12 * 96, 24 * 96, 24)
    assert found.trainable == 9 * 2 * 2 * 16
    assert "12 lessons an epoch" in "\n".join(found.lines())
    long = write_recipe(
        folder / "long.yaml", model, corpus, method="cartridge", block_size=96, cartridge={"tokens": 1900}
    )
    with pytest.raises(CorpusError, match=r"lower cartridge\.tokens"):
        train(long, dry_run=True)
