"""The page of samples.

What it is for: `show` reads one or two results and gives the page. What it doesn't do: reading, filtering and HTML
(samples.py, sheets.py).

The one idea: which questions there are follows from the filters, and which one is open is a place among them, so that
j and k, a press on a question and a new filter are all the same thing: another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_kinject.pages.look import escape
from lm_eval_kinject.pages.samples import Pair, Told, filters_for, kept, read_pairs, results_of, told_of
from lm_eval_kinject.pages.serve import gradio
from lm_eval_kinject.pages.sheets import question_list, sheet
from lm_eval_kinject.stats import clustered_difference, mcnemar, paired
from lm_eval_kinject.study.lines import share

__all__ = ["CSS", "headline", "show"]

CSS = """
.kj.questions ol { margin: 0; padding: 0; list-style: none; max-height: 42rem; overflow-y: auto;
  border: 1px solid var(--line); border-radius: 4px; }
.kj.questions li { border-bottom: 1px solid var(--line); margin: 0; }
.kj.questions li[aria-current] { background: var(--wash); box-shadow: inset 3px 0 var(--mark); }
.kj.questions button { display: block; width: 100%; padding: .35rem .6rem; color: var(--ink); font-size: .87rem; }
.kj.questions b { display: inline-block; width: 1em; }
.kj.sheet .columns { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.kj.sheet section { min-width: 0; } .kj.sheet section > .scroll { margin: .5rem 0; }
.kj.sheet tbody th { font-weight: 400; white-space: normal; overflow-wrap: anywhere; }
.kj.sheet tbody th small { display: block; } .kj.sheet tr.target th, .kj.sheet tr.target td { background: var(--wash); }
.kj mark.chunk { display: block; background: var(--wash); color: inherit; border-left: 3px solid var(--mark);
  padding: 0 .2rem; }
.kj mark.gold { background: var(--gold); border-left-color: #e69f00; outline: 1px solid #e69f00; }
.kj mark .label { font-size: .72rem; color: var(--soft); display: block; }
@media (max-width: 40rem) { .kj.questions ol { max-height: 14rem; } }
"""

_KEYS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-place]');
  if (button) trigger('click', {place: Number(button.dataset.place)});
});
document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, textarea, select, [contenteditable]');
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !['j', 'k'].includes(event.key)) return;
  const open = element.querySelector('li[aria-current]');
  const next = open && (event.key === 'j' ? open.nextElementSibling : open.previousElementSibling);
  if (next) { next.querySelector('button').click(); next.scrollIntoView({block: 'nearest'}); }
});
"""
"""Presses of questions, and the keys j and k, which press the next one and the one before."""


def show(places: Sequence[str | Path], *, corpus: str | None = None) -> Any:
    """The page of one or two results.

    Args:
        places: results files, or folders with one.
        corpus: where their corpus is, if it is neither bundled nor on the Hub.

    Returns:
        Gradio's Blocks, to be shown by `serve`.

    Raises:
        ArgumentError: a result or its samples are missing or malformed, or two have nothing in common.
        KinjectError: gradio is missing.
    """
    gr = gradio()
    files = [results_of(Path(place).expanduser()) for place in places]
    pairs, told = read_pairs(files), [told_of(file, corpus) for file in files]
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    with gr.Blocks(title="Samples", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(headline(pairs, told), apply_default_css=False, js_on_load=None)
        with gr.Row():
            choices = [(words, name) for name, words in filters_for(len(files)).items()]
            which = gr.Dropdown(choices, value="all", label="Samples", min_width=200)
            task = gr.Dropdown([("All", ""), *((name, name) for name in tasks)], value="", label="Task", min_width=200)
            text = gr.Textbox(label="Question holds", max_lines=1, min_width=200)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                listed = gr.HTML(question_list(pairs, 0), apply_default_css=False, js_on_load=_KEYS)
            with gr.Column(scale=3, min_width=280):
                opened = gr.HTML(_sheet(pairs, 0, told), apply_default_css=False, js_on_load=None)

        def move(which: str, task: str, text: str, event: Any) -> tuple[str, str]:
            return at(which, task, text, int(event._data.get("place") or 0))

        def at(which: str, task: str, text: str, place: int = 0) -> tuple[str, str]:
            some = kept(pairs, which or "all", task or "", text or "")
            place = min(max(place, 0), max(0, len(some) - 1))
            return question_list(some, place), _sheet(some, place, told)

        def first(which: str, task: str, text: str) -> tuple[str, str]:
            return at(which, task, text)

        move.__annotations__["event"] = gr.EventData  # Gradio looks for it, and finds a text under `annotations`
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        listed.click(move, [which, task, text], [listed, opened], **quiet)
        for one in (which, task, text):
            one.change(first, [which, task, text], [listed, opened], **quiet)
    return page


def _sheet(pairs: Sequence[Pair], place: int, told: Sequence[Told]) -> str:
    return sheet(pairs[place], told) if pairs else ""


def headline(pairs: Sequence[Pair], told: Sequence[Told]) -> str:
    """The accuracies over the questions shown; of two results, the flips and whether they are more than noise."""
    names = " and ".join(escape(one.name) for one in told)
    lines = []
    for number, one in enumerate(told):
        answers = [pair.samples[number].answer for pair in pairs]
        scored = [answer for answer in answers if answer.correct is not None]
        right = share(scored).percent() if scored else "could not be scored"
        lines.append(f"<li><b>{escape(one.name)}</b>: {right}, N={len(scored):,}</li>")
    return f'<div class="kj"><h1>Samples of {names}</h1><ul>{"".join(lines)}</ul>{_difference(pairs)}</div>'


def _difference(pairs: Sequence[Pair]) -> str:
    if not pairs or len(pairs[0].samples) < 2:
        return ""
    first, second = ([pair.samples[number].answer for pair in pairs] for number in (0, 1))
    clusters = [one.cluster or other.cluster for one, other in zip(first, second, strict=True)]
    found = paired([one.correct for one in first], [one.correct for one in second], clusters)
    if not found.first:
        return ""
    gain = clustered_difference(found.first, found.second, found.clusters)
    p = mcnemar(found.first, found.second, found.clusters)
    flips = [sum(pair.flip == way for pair in pairs) for way in ("gained", "lost")]
    return (
        f"<p>The second less the first: {gain.points()}, p = {p:.3g} (McNemar’s exact test over chunks); {flips[0]} "
        f"right in the second only, {flips[1]} in the first only.</p>"
    )
