"""Study files: what is read, what is refused and all of it at once, and the grid that comes out."""

from __future__ import annotations

import pytest
import yaml

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.study import plan
from lm_eval_kinject.study.cells import axes_of, command_of, jobs_of, overrides_of, passes_of
from lm_eval_kinject.study.grid import Study, bundled_studies, read_study

SMALL = {
    "title": "Small",
    "models": ["reader"],
    "variants": {"base": None, "tuned": {"adapter": "reader-ft-par-lora"}},
    "retrievers": {"bm25": None, "oracle": {"k": 1, "variants": ["base"]}},
    "k": [0, 1, 3],
    "shots": [0, 2],
    "tasks": "current_events_cloze",
}


def write(folder, **changes):
    said = {name: value for name, value in {**SMALL, **changes}.items() if value != "left out"}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


def problems(folder, **changes):
    with pytest.raises(ArgumentError) as caught:
        read_study(write(folder, **changes))
    assert str(caught.value).count("\n  - ") == len(caught.value.problems)
    return caught.value.problems


def test_the_grid(tmp_path):
    study = read_study(write(tmp_path))
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names) == study.count() == (2 * 3 + 1) * 2
    assert names[:4] == [
        "reader/base/current_events_cloze/0-shot/k0",
        "reader/base/current_events_cloze/0-shot/bm25,k1",
        "reader/base/current_events_cloze/0-shot/bm25,k3",
        "reader/base/current_events_cloze/0-shot/oracle,k1",
    ]
    jobs = jobs_of(study)
    assert list(jobs) == ["reader/base", "reader/tuned"]
    assert list(passes_of(jobs["reader/tuned"])) == ["current_events_cloze/0-shot", "current_events_cloze/2-shot"]
    command = " ".join(command_of(study, jobs["reader/tuned"][1], tmp_path))
    assert command == (
        "lm_eval --model rag-hf --model_args adapter=reader-ft-par-lora,retriever=bm25,k=1 --tasks "
        "current_events_cloze --num_fewshot 0 --batch_size 8 --log_samples --output_path results"
    )


def test_axes_seeds_and_placements_multiply_where_they_mean_something(tmp_path):
    study = read_study(
        write(
            tmp_path,
            variants={"base": None, "ft": {"recipe": "reader-ft-reg"}},
            retrievers=["bm25"],
            seeds=[0, 1, 2],
            placement=["question", "start"],
            axes={"order": ["relevance", "sides"]},
            shots=0,
        )
    )
    closed = [cell for cell in study.cells if dict(cell.arguments)["k"] == 0]
    assert [cell.weights for cell in closed] == [
        "reader/base", "reader/ft-seed0", "reader/ft-seed1", "reader/ft-seed2"
    ]  # fmt: skip
    assert len(study.cells) == study.count() == 4 * (1 + 2 * 2 * 2)
    assert study.cells[-1].name.endswith("/bm25,k3,placement=start,order=sides")


def test_cells_have_names_that_are_folders(tmp_path):
    study = read_study(write(tmp_path, corpus="a/b c", retrievers={"mine": {"retriever": "org/model"}}, shots=0))
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 4 and " " not in name for name in names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"title": "left out"}, "title is missing"),
        ({"tasks": []}, "tasks: there is nothing in it"),
        ({"k": []}, "k: there is nothing in it"),
        ({"k": [0, 0]}, "k: a value stands there twice"),
        ({"k": [-1]}, "k: -1 is negative"),
        ({"k": ["many"]}, "k.0: input should be a valid integer"),
        ({"retrievers": {}}, "there are no retrievers"),
        ({"retrievers": ["minlm"]}, "Did you mean minilm"),
        ({"retrievers": {"bm25": {"variants": ["bsae"]}}}, "there is no variant bsae (did you mean base?)"),
        ({"varaints": {}}, "varaints is unknown (did you mean variants"),
        ({"variants": {"base": None, "a b": None}}, "variants.a b: names take letters"),
        (
            {"variants": {"base": None, "x": {"adapter": "a", "peft": "b"}}},
            "variants.x: adapter and peft exclude each other",
        ),
        ({"variants": {"base": None, "x": {"set": {"epochs": 1}}}}, "variants.x.set: there is no recipe"),
        ({"variants": {"x": {"recpie": "a"}}}, "variants.x.recpie is unknown (did you mean recipe"),
        ({"models": {"m": {"pretrianed": "x"}}}, "models.m: pretrianed= is unknown"),
        ({"axes": {"ordr": ["sides"]}}, "axes.ordr is no argument of rag-hf (did you mean order"),
        ({"axes": {"order": ["sidesways"]}}, "order=sidesways is unknown"),
        ({"axes": {"k": [1]}}, "axes.k: the study has k: for this"),
        ({"placement": ["middle"]}, "placement=middle is unknown"),
        ({"k": list(range(1000)), "shots": list(range(1000))}, "more than the 100,000 allowed"),
        ({"retrievers": {"bm25": {"k": []}}, "k": [1]}, "the grid has no cell"),
        (
            {"retrievers": {"bm25": None, "words": {"retriever": "bm25"}}},
            "retrievers.words asks for the same as retrievers.bm25; remove one",
        ),
    ],
)
def test_what_is_refused(tmp_path, changes, said):
    found = problems(tmp_path, **changes)
    assert len(found) == 1, found
    assert said in found[0]


def test_everything_at_once(tmp_path):
    found = problems(tmp_path, shots=[-1], k=[0, 0, 1], variants={"x": {"set": {"a": 1}}}, axes={"ordr": [1]})
    assert len(found) == 5  # and the variant `base` that a retriever names is gone, too
    found = problems(tmp_path, titel="x", tasks="left out", limit=0)
    assert sorted(problem.split()[0].rstrip(":") for problem in found) == ["limit", "tasks", "titel"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for spec, said in (
        ("embeded", "did you mean embedded"),
        (tmp_path / "list.yaml", "it must be a mapping"),
        (tmp_path / "broken.yaml", "not a YAML file"),
    ):
        with pytest.raises(ArgumentError) as caught:
            read_study(spec)
        assert said in str(caught.value)


def test_a_way_has_its_name_in_reports_and_its_arguments_in_commands(tmp_path):
    ways = {
        "bm25": {},
        "turned": {"retriever": "bm25", "arguments": {"order": "reverse"}},
        "twice": {"retriever": "oracle", "arguments": {"order": "reverse"}},
    }
    file = tmp_path / "ways.yaml"
    said = {"title": "x", "models": ["reader"], "retrievers": ways, "k": [0, 2], "tasks": ["current_events"]}
    file.write_text(yaml.safe_dump(said, sort_keys=False))
    study = read_study(file)
    assert [cell.name.rsplit("/", 1)[-1] for cell in study.cells] == [
        "k0", "bm25,k2", "bm25,k2,order=reverse", "oracle,k2,order=reverse"
    ]  # fmt: skip
    axes = [axes_of(study, cell) for cell in study.cells]
    # A control stays one under any name.
    assert [one["retriever"] for one in axes] == ["none", "bm25", "turned", "oracle (twice)"]
    assert not any("order" in one for one in axes)
    assert "retriever=bm25,k=2,order=reverse" in command_of(study, study.cells[2], tmp_path)[4]


@pytest.mark.parametrize("name", bundled_studies())
def test_bundled_studies_are_sound(name):
    study = read_study(name)
    assert study.title
    assert len({cell.name for cell in study.cells}) == study.count()


def test_the_frontier_s_recipes_are_sound():
    """Each holds the weights in the way that its name says, and differs from the plain one in nothing else."""
    from kinject_trainer.recipe import load_recipe

    study = read_study("frontier")
    recipes = {
        name: load_recipe(str(variant.recipe), overrides_of(variant))
        for name, variant in study.variants.items()
        if variant.recipe
    }
    plain = recipes.pop("plain").effective()
    assert len(recipes) == 17
    for name, recipe in recipes.items():
        kind = name.split("-")[0]
        assert (recipe.regulariser.kind if recipe.regulariser else "replay") == {"mix": "replay"}.get(kind, kind)
        assert {k: v for k, v in recipe.effective().items() if k not in ("replay", "regulariser")} == plain


def test_forecast_counts_what_a_cross_encoder_reads(tmp_path):
    """A list is ranked once, whatever k and variants draw from it; maximal marginal relevance reads nothing."""
    study = Study(
        title="t",
        models={"reader": {}},
        variants={"base": {}, "ft": {"adapter": "reader-ft-reg-lora"}},
        retrievers={"bm25": {}, "minilm": {}},
        k=[1, 3],
        tasks=["a", "b"],
        axes={"rerank": ["mmr", "owner/name"], "rerank_from": [5, 30]},
        limit=50,
    )
    asked = {"a": plan._Asked(200, 0.0, 0.0, None), "b": plan._Asked(40, 0.0, 0.0, None)}
    pairs = 2 * (50 + 40) * (5 + 30)  # retrievers, questions, depths
    said = f"rerank       owner/name: {pairs:,} pairs of question and chunk, which tokens and time above don't hold"
    assert plan._rerankings(study, tmp_path, asked) == [said]
    plain = Study(title="t", models={"reader": {}}, retrievers={"bm25": {}}, tasks=["a", "b"])
    assert plan._rerankings(plain, tmp_path, asked) == []
