"""Model cards: what a published run says to people, and to the Hub in its metadata.

What it is for: `render_card` makes the README.md of a run from its ``kinject.json`` and its scores. What it does not
do: it measures nothing and states nothing that isn't in them; what wasn't measured is said to be missing.

The one idea: a card is a pure function of what it is given. No date, no machine, no order of files goes in, so the same
run has the same card everywhere, and tests compare it with a file (``tests/gold``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.eval_results import Score, interval, model_index
from lm_eval_kinject.hub.run import Run
from lm_eval_kinject.plugin import adapters_dir

__all__ = ["CardFacts", "render_card", "variant_of"]

TEMPLATE = "card.md.jinja"

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


@dataclass(frozen=True)
class CardFacts:
    """What a card needs to know beside the run itself.

    Attributes:
        repo_id: where the run is published.
        base: the base's name on the Hub.
        base_revision: its commit.
        corpus: the corpus's name on the Hub, where it is there.
        corpus_revision: its commit.
        licence: of the weights; None: not stated.
        licence_name: what ``other`` is called.
        licence_link: address of its text.
        curve: file name of the loss curve in the repository, if there is one.
        subjects: names under which results speak of these weights (the repository's, and the run's folder).
    """

    repo_id: str
    base: str
    base_revision: str | None
    corpus: str | None = None
    corpus_revision: str | None = None
    licence: str | None = None
    curve: str | None = None
    subjects: tuple[str, ...] = ()
    licence_name: str | None = None
    licence_link: str | None = None

    @property
    def licence_shown(self) -> str:
        """The licence for a person to read."""
        name = self.licence_name or self.licence or "not stated"
        return f"{name} ([text]({self.licence_link}))" if self.licence_link else name


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
        PublishError: the metadata aren't what the Hub's client accepts, or the licence lacks its name.
    """
    import jinja2

    bases = (facts.base, *run.base_names)
    told = [(variant_of(s, (facts.repo_id, *facts.subjects), bases), s) for s in scores]
    rows = sorted(((v, s) for v, s in told if v is not None), key=_row_order)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(adapters_dir()),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters |= {"num": _number, "cell": _cell}
    text = environment.get_template(TEMPLATE).render(
        metadata=_metadata(run, facts, [s for v, s in rows if v.startswith("this")]),
        run=run,
        facts=facts,
        title=facts.repo_id.split("/")[-1],
        what=_what(run),
        settings=_settings(run),
        scores=[_row(variant, score) for variant, score in rows],
        forgetting=_forgetting(run),
        vllm_rank=next((r for r in _VLLM_RANKS if r >= int(run.recipe.get("rank") or 1)), _VLLM_RANKS[-1]),
        tasks=sorted({score.task for _, score in rows}) or ["current_events_cloze"],
    )
    _check(text)
    return text


def _row_order(row: tuple[str, Score]) -> tuple[Any, ...]:
    variant, score = row
    return score.task, score.metric, _ORDER.index(variant), score.k, score.variant


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


def _what(run: Run) -> str:
    recipe = run.recipe
    names = {"full": "full fine-tuning", "lora": "LoRA", "rslora": "rsLoRA"}
    method = names.get(str(recipe["method"]), recipe["method"])
    if recipe["variant"] != "ft-par":
        return f"FT-reg: continued pretraining on the corpus as it is, {method}"
    wordings = recipe.get("paraphrases")
    count = 10 if wordings is None else wordings  # the recipe's default
    return f"FT-par: continued pretraining on the corpus and {count} paraphrases of each chunk, {method}"


_SHOWN = (
    "method", "rank", "alpha", "dropout", "targets", "block_size", "epochs", "global_batch", "learning_rate", "warm_up",
    "schedule", "weight_decay", "precision", "seed",
)  # fmt: skip
_ADAPTER_ONLY = ("rank", "alpha", "dropout", "targets")


def _settings(run: Run) -> list[tuple[str, Any]]:
    """Hyper-parameters; the learning rate is the one that was used, also after a search."""
    values = dict(run.recipe)
    if run.outcome.get("learning_rate") is not None:
        values["learning_rate"] = run.outcome["learning_rate"]
    shown = [(key, values[key]) for key in _SHOWN if key in values and (run.is_adapter or key not in _ADAPTER_ONLY)]
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


# Metadata -------------------------------------------------------------------------------------------------------------


def _metadata(run: Run, facts: CardFacts, scores: Sequence[Score]) -> str:
    from huggingface_hub import ModelCardData

    variant = str(run.recipe["variant"])
    tags = ["kinject", "knowledge-injection", "continued-pretraining", variant, f"kinject-corpus:{run.corpus['name']}"]
    if run.is_adapter:
        tags.append("lora")
    fields: dict[str, Any] = {
        "base_model": facts.base,
        "base_model_relation": "adapter" if run.is_adapter else "finetune",
        "library_name": "peft" if run.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
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


def _check(text: str) -> None:
    """Lets the Hub's client read the metadata back; the Hub itself checks them again when they are pushed."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data.to_dict()
    except (ValueError, KeyError, TypeError) as problem:
        raise PublishError(f"The card's metadata can't be read back by the Hub's client: {problem}.") from problem
    if not isinstance(data, Mapping) or not data.get("base_model"):
        raise PublishError("The card's metadata lack base_model: push the base first and name it.")
