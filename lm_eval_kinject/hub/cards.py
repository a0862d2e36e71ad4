"""What a published run says about itself: to programs in ``kinject.json``, to people and the Hub in its card.

What it is for: `read_run` finds in a finished run's ``kinject.json`` what a card, a record and a verification need;
`render_card` makes the README.md of it and of its scores; `with_page` puts both into what is published. What it does
not do: it measures nothing and states nothing that isn't in them; what wasn't measured is said to be missing.

The one idea: a card is a pure function of what it is given. No date, no machine, no order of files goes in, so the same
run has the same card everywhere, and tests compare it with a file (``tests/gold``).

The layout of ``kinject.json`` is known here (`Run`) and nowhere else in this room.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.client import Say
from lm_eval_kinject.hub.content import USED, Content, matches, to_json
from lm_eval_kinject.hub.eval_results import BUNDLED_CORPUS, HUB_CORPUS, Score, interval, merge_scores, model_index
from lm_eval_kinject.hub.publish import Remote
from lm_eval_kinject.plugin import adapters_dir

__all__ = ["FILE", "CardFacts", "Run", "parse_run", "read_run", "render_card", "with_page"]

FILE, TEMPLATE = "kinject.json", "card.md.jinja"

LICENCES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bsl-1.0 bsd bsd-2-clause bsd-3-clause cc "
    "cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 llama2 llama3 llama3.1 llama3.2 "
    "llama3.3 llama4 gemma odc-by odbl pddl unlicense unknown other".split()
)
"""Those that the Hub's metadata take by name; any other is ``other`` with its name beside it."""

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` takes."""

_ORDER = ("base", "RAG", "this", "this + RAG")


# A run ----------------------------------------------------------------------------------------------------------------


_Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class RecipeOf(_Part):
    """Every key of the recipe, defaults included; those that anybody here asks for are named."""

    method: _Text = Field(description="lora, rslora, full or cartridge")
    variant: _Text = Field(description="ft-reg or ft-par")
    paraphrases: int | None = Field(default=None, description="of each chunk; None: 10")
    rank: int | None = Field(default=None, description="of an adapter")
    stream: bool = Field(default=False, description="whether the corpus was read row by row")


class BaseOf(_Part):
    """The base model."""

    name: _Text = Field(description="a Hub id or a folder's name")
    identity: _Text = Field(description="a Hub commit (40 digits) or a folder's fingerprint (64)")
    trained_on: dict[str, str] = Field(default={}, description="added on the Hub: both at training time")

    @property
    def commit(self) -> str | None:
        """On the Hub; None where the base was a folder (the embedded reader is one)."""
        return self.identity if re.fullmatch(r"[0-9a-f]{40}", self.identity) else None

    @property
    def fingerprint(self) -> str | None:
        """Of a folder; None where the base was on the Hub."""
        return None if self.commit else self.identity


class CorpusOf(_Part):
    """The corpus, as `Corpus.provenance` gives it."""

    name: _Text = Field(description="a bundled corpus, a Hub data set or a folder's name")
    fingerprint: _Text = Field(description="of its chunks")
    source: str | None = Field(default=None, description="in words; starts with HUB_CORPUS or BUNDLED_CORPUS")
    revision: str | None = Field(default=None, description="Hub commit or edition")
    licence: str | None = Field(default=None, description="of its text")
    paraphrases: str | None = Field(default=None, description="fingerprint of the file, if it was used")
    validation: str | None = Field(default=None, description="likewise")

    @property
    def on_hub(self) -> bool:
        """Whether it came from the Hub."""
        return (self.source or "").startswith(HUB_CORPUS)

    @property
    def bundled(self) -> bool:
        """Whether it is in this package."""
        return (self.source or "").startswith(BUNDLED_CORPUS)


class Run(_Part):
    """A ``kinject.json``: what a run says about itself."""

    recipe: RecipeOf
    recipe_fingerprint: _Text
    base: BaseOf
    corpus: CorpusOf
    environment: dict[str, Any] = Field(min_length=1, description="versions and processor")
    outcome: dict[str, Any] = Field(
        default={}, description="learning rate, counts, losses, forgetting before and after"
    )
    published: dict[str, Any] = Field(default={}, description="added on the Hub: `CardFacts`, and digests of `files`")
    scores: list[Score] = Field(default=[], description="added on the Hub")

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are an adapter, as against a whole model."""
        return self.recipe.method != "full"

    def plain(self) -> dict[str, Any]:
        """All of it as JSON can hold it, and nothing that it didn't say."""
        return self.model_dump(exclude_unset=True)


def read_run(folder: str | Path) -> Run:
    """Reads the ``kinject.json`` of a folder.

    Raises:
        PublishError: there is none, or it says too little.
    """
    file = Path(folder).expanduser() / FILE
    if not file.is_file():
        raise PublishError(
            f"The folder {file.parent.name} has no {FILE}: it isn't the result of a finished `kinject train`. A base "
            "model or a question set is pushed with --as model or --as dataset."
        )
    return parse_run(file.read_bytes(), where=f"{file.parent.name}/{FILE}")


def parse_run(content: bytes, where: str = FILE) -> Run:
    """The same from bytes."""
    try:
        return Run.model_validate(json.loads(content))
    except ValidationError as problem:
        missing = ", ".join(dict.fromkeys(".".join(map(str, error["loc"])) for error in problem.errors()))
        raise PublishError(f"{where} doesn't say {missing}: a card and a rerun need it. Train again.") from problem
    except ValueError as problem:
        raise PublishError(f"{where} is no JSON: train again, or get the file back.") from problem


# Its card -------------------------------------------------------------------------------------------------------------


@checked_dataclass(frozen=True)
class CardFacts:
    """What a card needs to know beside the run itself."""

    repo_id: str = Field(description="where the run is published")
    base: str = Field(description="the base's name on the Hub")
    base_revision: str | None = Field(description="its commit")
    corpus: str | None = Field(default=None, description="the corpus's name on the Hub, where it is there")
    corpus_revision: str | None = Field(default=None, description="its commit")
    licence: str | None = Field(default=None, description="of the weights; None: not stated")
    curve: str | None = Field(default=None, description="file name of the loss curve, if there is one")
    subjects: tuple[str, ...] = Field(default=(), description="other names of these weights in results: the folder's")
    licence_name: str | None = Field(default=None, description="what `other` is called")
    licence_link: str | None = Field(default=None, description="address of its text")

    @property
    def licence_shown(self) -> str:
        """The licence for a person to read."""
        name = self.licence_name or self.licence or "not stated"
        return f"{name} ([text]({self.licence_link}))" if self.licence_link else name

    def variant(self, score: Score, run: Run) -> str | None:
        """`variant_of` for a run with these facts."""
        names = (self.base, run.base.name, run.base.trained_on.get("name", self.base))
        return variant_of(score, (self.repo_id, *self.subjects), names)


def variant_of(score: Score, subjects: Iterable[str], bases: Iterable[str]) -> str | None:
    """What a score is about: ``base``, ``RAG``, ``this`` or ``this + RAG``; None: something else.

    Args:
        score: of anything.
        subjects: names of the run's weights.
        bases: names of the run's base; any other model, and an adapter on another one, are something else.
    """
    this = score.subject in set(subjects)
    if score.model not in set(bases) and not (this and not score.has_adapter):
        return None
    if score.has_adapter and not this:
        return None
    if score.k == 0:
        return "this" if this else "base"
    return "this + RAG" if this else "RAG"


def render_card(run: Run, facts: CardFacts, scores: Sequence[Score] = ()) -> str:
    """The README.md of a published run.

    Raises:
        PublishError: the licence lacks its name.
    """
    import jinja2

    told = [(facts.variant(score, run), score) for score in scores]
    rows = [(variant, score) for variant, score in told if variant is not None]
    rows.sort(key=lambda row: (row[1].task, row[1].metric, _ORDER.index(row[0]), row[1].k, row[1].variant))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(adapters_dir()),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters |= {"num": _number, "cell": _cell}
    return environment.get_template(TEMPLATE).render(
        metadata=_metadata(run, facts, [score for variant, score in rows if variant.startswith("this")]),
        run=run,
        facts=facts,
        title=facts.repo_id.split("/")[-1],
        settings=_settings(run),
        scores=[_row(variant, score) for variant, score in rows],
        forgetting=_forgetting(run),
        vllm_rank=next((r for r in _VLLM_RANKS if r >= (run.recipe.rank or 1)), _VLLM_RANKS[-1]),
        tasks=sorted({score.task for _, score in rows}) or ["current_events_cloze"],
    )


def _row(variant: str, score: Score) -> dict[str, Any]:
    found = interval(score)
    return {
        "task": score.task + (f" ({score.shots}-shot)" if score.shots else ""),
        "metric": score.metric,
        "variant": variant + (f" ({', '.join(score.how)})" if score.how else ""),
        "retrieval": f"k={score.k}, {score.setting['retriever']}" if score.k else "none",
        "value": f"{score.value:.3f}",
        "interval": "–" if found is None else f"{found[0]:.3f}–{found[1]:.3f}",
        "n": ("–" if score.n is None else str(score.n)) + (" (part)" if score.limited else ""),
    }


_SHOWN = (
    "method", "rank", "alpha", "dropout", "targets", "block_size", "epochs", "global_batch", "learning_rate", "warm_up",
    "schedule", "weight_decay", "precision", "seed",
)  # fmt: skip
_ADAPTER_ONLY = ("rank", "alpha", "dropout")


def _settings(run: Run) -> list[tuple[str, Any]]:
    """Hyper-parameters; the learning rate is the one that was used, also after a search."""
    values = run.recipe.model_dump(exclude_unset=True)
    if run.outcome.get("learning_rate") is not None:
        values["learning_rate"] = run.outcome["learning_rate"]
    has_rank = run.recipe.method not in ("full", "cartridge")
    if not has_rank and values.get("targets") == "all-linear":
        del values["targets"]
    shown = [(key, values[key]) for key in _SHOWN if key in values and (has_rank or key not in _ADAPTER_ONLY)]
    replay = values.get("replay")  # a run of before there was replay has none; with a ratio of 0 it replays nothing
    if replay and replay["ratio"]:
        falling = f", times {replay['decay']:g} from epoch to epoch" if replay["decay"] != 1 else ""
        shown.append(("replay", f"{replay['ratio']:g} documents of {replay['corpus']} for each{falling}"))
    compressed = values.get("cartridge") if run.recipe.method == "cartridge" else None
    if compressed:
        shown.append(("cartridge", ", ".join(f"{key} {value}" for key, value in compressed.items())))
    held = values.get("regulariser")
    if held:
        constants = ", ".join(f"{key} {value}" for key, value in held.items() if key != "kind")
        shown.append(("regulariser", f"{held['kind']} ({constants})"))
    more = ("updates", "tokens", "trainable_parameters")
    return shown + [(key.replace("_", " "), run.outcome[key]) for key in more if run.outcome.get(key) is not None]


def _forgetting(run: Run) -> list[dict[str, Any]]:
    before, after = run.outcome.get("before") or {}, run.outcome.get("after") or {}
    names = {"perplexity": "perplexity on held-out general text", "recall": "recall of the base's own knowledge"}
    return [
        {"name": text, "before": before.get(key), "after": after.get(key)}
        for key, text in names.items()
        if before.get(key) is not None or after.get(key) is not None
    ]


def _number(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _cell(value: Any) -> str:
    """A value inside a Markdown table."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else _number(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _metadata(run: Run, facts: CardFacts, scores: Sequence[Score]) -> str:
    from huggingface_hub import ModelCardData

    variant, corpus = run.recipe.variant, f"kinject-corpus:{run.corpus.name}"
    tags = ["kinject", "knowledge-injection", "continued-pretraining", variant, corpus]
    fields: dict[str, Any] = {
        "base_model": facts.base,
        "base_model_relation": "adapter" if run.is_adapter else "finetune",
        "library_name": "peft" if run.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*tags, "cartridge" if run.recipe.method == "cartridge" else "lora"] if run.is_adapter else tags,
        **_licence(facts),
    }
    if facts.corpus:
        fields["datasets"] = [facts.corpus]
    if scores:
        fields |= {"model_name": facts.repo_id.split("/")[-1], "eval_results": model_index(scores)}
    return str(ModelCardData(**fields).to_yaml())


def _licence(facts: CardFacts) -> dict[str, str]:
    if facts.licence is None:
        return {}
    if facts.licence in LICENCES and facts.licence != "other":
        return {"license": facts.licence}
    name = facts.licence_name if facts.licence == "other" else facts.licence
    if not name:
        raise PublishError(
            "The licence `other` has no name, and the Hub takes none without: put license_name into the card of the "
            "base on the Hub, or name the licence with --licence."
        )
    link = {"license_link": facts.licence_link} if facts.licence_link else {}
    return {"license": "other", "license_name": name, **link}


# Both, where the run is published -------------------------------------------------------------------------------------


def with_page(
    content: Content, run: Run, facts: CardFacts, scores: Iterable[Score], remote: Remote | None, say: Say
) -> Content:
    """Adds what a repository says about itself: ``kinject.json`` with digests and scores, and the card.

    Scores that the repository has already stay as long as the weights are the same; a new score replaces an old one of
    the same task, metric, variant and subject. ``content`` holds the run's ``kinject.json``; where it has no weights,
    they stay as the repository has them.
    """
    files = {path: content.sha256(path) for path in sorted(content.files) if matches(path, USED)}
    files = files or dict(run.published.get("files") or {})
    there = remote.read(FILE, say) if remote is not None else None
    old = parse_run(there) if there is not None else None
    known = old.scores if old is not None and old.published.get("files") == files else []
    new = [_renamed(score, facts) for score in scores if facts.variant(score, run) is not None]
    merged = merge_scores(known, new)
    data = {
        **json.loads(content.read(FILE)),
        "published": {**asdict(facts), "subjects": [], "files": files},
        "scores": [asdict(score) for score in merged],
    }
    card = render_card(Run(**data), replace(facts, subjects=()), merged)
    return content.with_files({FILE: to_json(data), "README.md": card.encode()})


def _renamed(score: Score, facts: CardFacts) -> Score:
    """A score of the run's folder, or of its base's, is one of the repository's; their local names don't go out."""
    this = score.subject in (facts.repo_id, *facts.subjects)
    subject = facts.repo_id if this else facts.base
    return replace(score, subject=subject, model=facts.base if score.has_adapter else subject)
