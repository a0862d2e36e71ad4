"""The page on which people review the questions of a set.

What it is for: `review` gives the page of one reviewer. What it doesn't do: it decides nothing and holds nothing
(desk.py).

The one idea: everything is done by keys, and a key does what a button does. While an answer is awaited keys do
nothing, so that nobody decides on a question that isn't before their eyes yet.
"""

from __future__ import annotations

import threading
from typing import Any

from lm_eval_kinject.pages.desk import Desk
from lm_eval_kinject.pages.serve import gradio

__all__ = ["CSS", "review"]

CSS = """
.kj.desk header .note { display: flex; flex-wrap: wrap; gap: .1rem .8rem; align-items: center; }
.kj.desk progress { appearance: none; width: 10rem; max-width: 40vw; height: .5rem; border: 0; border-radius: 4px;
  overflow: hidden; background: var(--line); }
.kj.desk progress::-webkit-progress-bar { background: var(--line); }
.kj.desk progress::-webkit-progress-value { background: var(--mark); }
.kj.desk progress::-moz-progress-bar { background: var(--mark); }
.kj.desk .filters { display: flex; flex-wrap: wrap; gap: .3rem; margin: .4rem 0; }
.kj.desk .filters button { border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .7rem;
  color: var(--ink); }
.kj.desk .filters button[aria-pressed=true] { background: var(--wash); border-color: var(--mark); font-weight: 600; }
.kj.desk .said { min-height: 1.6rem; }
.kj.desk .said:has(.bad) { position: sticky; top: 0; z-index: 3; background: var(--paper); } /* the form is far below */
.kj.desk .columns { display: grid; gap: .8rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.kj.desk section { min-width: 0; } .kj.desk section > h2:first-child { margin-top: .2rem; }
.kj.desk li small { font-weight: 400; } .kj.desk dl { grid-template-columns: max-content 1fr; }
.kj.desk dd { margin-bottom: 0; }
.kj.desk h2.asked { font-size: 1.2rem; margin-top: .2rem; outline: none; overflow-wrap: anywhere; }
.kj.desk ol.options { list-style: upper-alpha; margin: .4rem 0; padding-left: 1.9rem; }
.kj.desk ol.options li { padding: .15rem .4rem; overflow-wrap: anywhere; }
.kj.desk ol.options li.right { background: var(--gold); border-left: 3px solid #e69f00; }
.kj.desk .doing, .kj.desk .moving { display: flex; flex-wrap: wrap; gap: .3rem; align-items: center; }
.kj.desk .moving button { margin-right: .6rem; }
.kj.desk button.yes { color: var(--good); border-color: var(--good); font-weight: 600; }
.kj.desk button.no { color: var(--bad); border-color: var(--bad); font-weight: 600; }
.kj kbd { font: .78rem/1.2 ui-monospace, "DejaVu Sans Mono", monospace; border: 1px solid var(--line);
  color: var(--soft); border-radius: 3px; padding: 0 .3rem; background: var(--tint); font-weight: 400; }
.kj.desk .panel { border: 1px solid var(--line); border-left: 3px solid var(--mark); border-radius: 4px;
  padding: .6rem .8rem; margin: .6rem 0; background: var(--tint); }
.kj.desk [hidden] { display: none; }
.kj.desk .picks { display: grid; gap: .2rem; justify-items: start; margin-bottom: .4rem; }
.kj.desk .picks button { width: 100%; }
.kj.desk label { display: block; font-size: .85rem; color: var(--soft); }
.kj.desk fieldset { border: 0; padding: 0; margin: .5rem 0; min-width: 0; }
.kj.desk legend { font-size: .85rem; color: var(--soft); padding: 0; }
.kj.desk textarea, .kj.desk .panel input:not([type=radio]) { display: block; width: 100%; box-sizing: border-box;
  font: inherit; font-size: 1rem; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 4px; padding: .3rem .5rem; margin: .1rem 0 .5rem; }
.kj.desk .option { display: flex; gap: .5rem; align-items: center; }
.kj.desk .option label { flex: 1; display: flex; gap: .4rem; align-items: center; }
.kj.desk input[type=radio] { appearance: none; width: 1.1rem; height: 1.1rem; flex: none; margin: 0 0 .4rem;
  border: 2px solid var(--soft); border-radius: 50%; background: var(--paper); }
.kj.desk input[type=radio]:checked { border-color: var(--mark); background: radial-gradient(var(--mark) 45%,
  var(--paper) 52%); }
.kj.desk .passage { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); padding: .6rem .8rem;
  border: 1px solid var(--line); border-radius: 4px; max-height: 28rem; overflow-y: auto; }
.kj.desk .passage mark { background: var(--gold); color: inherit; outline: 1px solid #e69f00; font-weight: 600; }
.kj.desk .passage .evidence { background: var(--wash); }
.kj.desk :is(textarea, input, .passage):focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
.kj.desk dialog { background: var(--paper); color: var(--ink); border: 1px solid var(--line); border-radius: 6px;
  max-width: min(34rem, 92vw); margin: auto; padding: .8rem 1.2rem; }
.kj.desk dialog::backdrop { background: rgb(0 0 0 / .45); }
"""

_KEYS = """
const NAMES = {a: 'accept', j: 'next', k: 'back', n: 'unreviewed'};
const PANELS = {e: 'edit', r: 'reject'};
const desk = () => element.querySelector('.desk[data-at]');
let awaited = 0, patience = null;
const send = (told) => {
  const {at, of, show, turn} = desk() ? desk().dataset : {at: '', of: '', show: '', turn: 0};
  if (Number(turn) < awaited) return;
  awaited = Number(turn) + 1;
  clearTimeout(patience);
  patience = setTimeout(() => {
    if (desk() && Number(desk().dataset.turn) >= awaited) return;
    awaited = 0;
    const said = element.querySelector('.said');
    if (said) said.innerHTML = '<b class="bad">No answer. Is <code>kinject questions review</code> still running? ' +
      'What was done last may not be kept; do it again when the page answers.</b>';
  }, 15000);
  trigger('click', {at, of, show, turn: awaited, ...told});
};
const panel = (name) => element.querySelector('.panel.' + name);
const opened = () => element.querySelector('.panel:not([hidden])');
const focusOn = (box) => (box ? box.querySelector('textarea, button') : element.querySelector('.asked')).focus();
const open = (name) => {
  if (name === 'keys') {
    const box = element.querySelector('dialog.keys');
    return box.open ? box.close() : box.showModal();
  }
  for (const one of ['edit', 'reject']) {
    panel(one).hidden = one !== name;
    const button = element.querySelector(`[data-open=${one}]`);
    button.setAttribute('aria-expanded', String(one === name));
  }
  focusOn(opened());
};
const keep = (form) => {
  if (form.classList.contains('reject')) return send({do: 'reject', reason: form.elements.reason.value});
  const picked = form.querySelector('[name=answer]:checked');
  send({do: 'edit', edit: {
    question: form.elements.question.value, evidence: form.elements.evidence.value,
    choices: [...form.querySelectorAll('[name=choice]')].map((one) => one.value),
    answer: picked ? Number(picked.value) : -1}});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.do) {
    send({do: button.dataset.do, to: button.dataset.to || '', original: 'original' in button.dataset});
  }
  else if (button.dataset.open) open(button.dataset.open);
  else if (button.dataset.reason) send({do: 'reject', reason: button.dataset.reason});
  else if ('close' in button.dataset) open('');
});
element.addEventListener('submit', (event) => {
  if (event.target.method === 'dialog') return;
  event.preventDefault();
  keep(event.target);
});
document.addEventListener('keydown', (event) => {
  if (!desk() || element.querySelector('dialog[open]')) {
    if (desk() && event.key === '?') { event.preventDefault(); open('keys'); }
    return;
  }
  const form = opened();
  if (event.key === 'Escape' && form) { event.preventDefault(); return open(''); }
  if (event.key === 'Enter' && event.ctrlKey && form) { event.preventDefault(); return keep(form); }
  const typing = event.target.closest('input:not([type=radio]), textarea, select, [contenteditable]');
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (form && form.classList.contains('reject') && /^[1-9]$/.test(event.key)) {
    const pick = form.querySelectorAll('[data-reason]')[Number(event.key) - 1];
    if (pick) pick.click();
    return;
  }
  if (event.key === '?') { event.preventDefault(); return open('keys'); }
  if (form) return;
  if (event.key in NAMES) { event.preventDefault(); send({do: NAMES[event.key]}); }
  else if (event.key in PANELS) { event.preventDefault(); open(PANELS[event.key]); }
  else if (event.key === 'f' || event.key === 'F') send({do: 'filter', way: event.key === 'f' ? 1 : -1});
});
watch('value', () => {
  if (!desk()) return;
  const {at, show} = desk().dataset;
  history.replaceState(null, '', '#' + new URLSearchParams({at, show}));
  focusOn(opened());
});
const begin = () => {
  const place = new URLSearchParams(location.hash.slice(1));
  send({do: 'go', at: place.get('at') || '', of: '', show: place.get('show') || 'all'});
};
begin();
"""
"""Keys and buttons say what was done and to which question; the place is kept in the address, for loading again."""


def review(desk: Desk, *, look: bool = True) -> Any:
    """The page of a reviewer.

    Args:
        desk: their desk.
        look: look for cues in the background.

    Returns:
        Gradio's Blocks, to be shown by `serve`.

    Raises:
        KinjectError: gradio is missing.
    """
    gr = gradio()
    if look:
        threading.Thread(target=desk.look, daemon=True).start()
    with gr.Blocks(title="Review", analytics_enabled=False, fill_width=True) as page:
        seen = gr.HTML(
            '<div class="kj"><p role="status">The questions are on their way.</p></div>',
            apply_default_css=False,
            js_on_load=_KEYS,
        )

        def act(event: Any) -> str:
            return desk.act(event._data)

        act.__annotations__["event"] = gr.EventData  # Gradio looks for it, and finds a text under `annotations`
        seen.click(act, None, seen, api_visibility="private", show_progress="hidden")
    return page
