"""How pages look: text made harmless, colours, and the styles that all pages share.

What it is for: one visual language with the report of a study (its greys, its blue, its boxes that scroll), in light
and in dark. What it doesn't do: it knows nothing of results.

The one idea: whatever comes from a file goes through `escape`, and nothing else writes text into a page.
"""

from __future__ import annotations

import html

__all__ = ["CSS", "REPORT", "button", "escape", "percent"]

CSS = """
.gradio-container { --ink: #1a1a1a; --soft: #5a5a5a; --line: #d9d9d9; --tint: #f6f6f4; --paper: #fff; --link: #00588c;
  --mark: #0072b2; --good: #00614a; --bad: #9c3f00; --wash: #e6f1f8; --gold: #fff3d0; color: var(--ink); }
.dark .gradio-container, .gradio-container.dark, body.dark .gradio-container { --ink: #e8e8e6; --soft: #b0b0ac;
  --line: #44464a; --tint: #26282c; --paper: #17181b; --link: #79c0ec; --mark: #56b4e9; --good: #4fd0a8;
  --bad: #f0a36b; --wash: #1c3444; --gold: #463a12; }
.gradio-container { max-width: 96rem !important; }
.gradio-container button.primary { background: var(--link); color: var(--paper); }
.gradio-container button[role=tab][aria-selected=true] { color: var(--link); }
.gradio-container .info-text, .gradio-container .or, .gradio-container input.subdued { color: var(--soft) !important; }
.kj { color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.kj h1 { font-size: clamp(1.3rem, 4vw, 1.8rem); line-height: 1.2; margin: .2rem 0 .4rem; font-weight: 650; }
.kj h2 { font-size: 1.1rem; margin: 1rem 0 .4rem; line-height: 1.3; font-weight: 600; }
.kj h3 { font-size: 1rem; margin: .8rem 0 .3rem; font-weight: 600; }
.kj p { margin: .3rem 0; } .kj ul { margin: .3rem 0; padding-left: 1.2rem; }
.kj .note, .kj small { color: var(--soft); font-size: .85rem; }
.kj .scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; max-width: 100%;
  background: var(--paper); }
.kj .scroll:focus-visible, .kj button:focus-visible, .kj summary:focus-visible { outline: 2px solid var(--mark);
  outline-offset: 1px; }
.kj table { border-collapse: collapse; font-size: .87rem; line-height: 1.35; width: 100%; }
.kj th, .kj td { padding: .4rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
.kj thead th { background: var(--tint); white-space: nowrap; font-weight: 600; }
.kj td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.kj td small { display: block; font-size: .76rem; white-space: nowrap; }
.kj button { font: inherit; color: var(--link); background: none; border: 0; padding: .1rem 0; text-align: left;
  cursor: pointer; overflow-wrap: anywhere; }
.kj button:hover { text-decoration: underline; }
.kj button.solid { border: 1px solid var(--link); border-radius: 4px; padding: .25rem .7rem;
  margin: .2rem .3rem .2rem 0; }
.kj thead button { color: inherit; font-weight: 600; }
.kj code, .kj pre { font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.kj pre { background: var(--tint); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem;
  margin: .3rem 0;  white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink); }
.kj dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem; margin: .4rem 0; }
.kj dt { color: var(--soft); } .kj dd { margin: 0; overflow-wrap: anywhere; }
.kj .good { color: var(--good); font-weight: 600; } .kj .bad { color: var(--bad); font-weight: 600; }
.kj .hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 40rem) { .kj { font-size: 15px; } .kj th, .kj td { padding: .35rem .45rem; }
  .kj dl { grid-template-columns: 1fr; } .kj dd { margin-bottom: .3rem; }
  .gradio-container > main, .gradio-container .app { padding: .5rem !important; } }
"""

REPORT = """
let pressed = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button) return;
  pressed = {do: button.dataset.do, what: button.dataset.what || ''};
  trigger('click', pressed);
});
new MutationObserver(() => {
  if (!pressed || document.activeElement !== document.body) return;
  const same = (one) => one.dataset.do === pressed.do && (one.dataset.what || '') === pressed.what;
  [...element.querySelectorAll('button[data-do]')].find(same)?.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""
"""Tells the page which button was pressed; one listener for all of them, as they come and go.

Whoever pressed one keeps the place: when the page is written anew, the focus returns to the button that was pressed.
"""


def escape(text: object) -> str:
    """Text as HTML that shows it and does nothing else, fit for attributes too."""
    return html.escape(str(text), quote=True)


def percent(share: float) -> str:
    """A share as ``48.1 %``."""
    return f"{100 * share:.1f} %"


def button(label: str, style: str = "", expanded: bool | None = None, **data: object) -> str:
    """A button that a page's script reports with its data; the label is HTML already."""
    told = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    told += "" if expanded is None else f' aria-expanded="{str(expanded).lower()}"'
    return f'<button type="button"{f" class={style}" if style else ""}{told}>{label}</button>'
