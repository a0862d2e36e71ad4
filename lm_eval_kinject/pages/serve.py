"""Gradio, held to what these pages need: on this machine alone, no files, no calls to anybody, uploads where asked for.

What it is for: `gradio` is the import with a message where it is missing, `blocks` an empty page in our looks, and
`serve` shows one. What it doesn't do: it knows no page.

The one idea: every setting of Gradio that opens something is given here, so that no environment variable of its own
(``GRADIO_SHARE``, ``GRADIO_SERVER_NAME``, ``GRADIO_ALLOWED_PATHS``) decides it.
"""

from __future__ import annotations

import os
import re
from typing import Any

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.pages.look import CSS

__all__ = ["LOCAL", "gradio", "serve"]

LOCAL = "127.0.0.1"

_FILES = re.compile(r"/(file[=/]|proxy=|process_recording)")
"""What of Gradio's addresses gives files of this machine, or fetches from others."""


class _NoFiles:
    """Answers 403 wherever Gradio would give a file: what visitors have uploaded is theirs, and all else is ours.

    `blocked_paths` does so for a page without uploads; with them it would keep the page itself from reading them.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _FILES.search(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


def gradio() -> Any:
    """The module.

    Raises:
        KinjectError: it isn't installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio as gr
    except ImportError as error:
        raise KinjectError("Pages need gradio, which isn't installed: pip install 'lm-eval-kinject[pages]'") from error
    return gr


def serve(
    page: Any,
    *,
    css: str = "",
    port: int | None = None,
    share: bool = False,
    public: bool = False,
    upload: int = 0,
    wait: bool = True,
) -> str:
    """Shows a page until it is stopped.

    Args:
        page: Gradio's Blocks.
        css: beside what all pages share.
        port: None: the first free one from 7860.
        share: a public address through Gradio's servers; anybody who knows it sees the page.
        public: answer to other machines, as a Space has to.
        upload: megabytes that an uploaded file may have; 0: the page takes none.
        wait: until Ctrl-C; without, the page is shown as long as the process lives.

    Returns:
        Its address.

    Raises:
        KinjectError: the port is taken.
    """
    gr = gradio()
    theme = gr.themes.Base(
        font=["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"],  # names in quotes; none is fetched
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    )
    try:
        _, address, shared = page.launch(
            server_name="0.0.0.0" if public else LOCAL,
            server_port=port,
            share=share,
            theme=theme,
            css=CSS + css,
            allowed_paths=[],
            blocked_paths=[] if upload else ["/"],
            max_file_size=f"{upload}mb" if upload else "1kb",
            app_kwargs={"middleware": [(_NoFiles, (), {})]},
            enable_monitoring=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        where = f"port {port} is" if port else "ports 7860 to 7959 are"
        raise KinjectError(
            f"The page can't be shown: {where} taken, or not ours to take. Name one with --port."
        ) from error
    if wait:
        page.block_thread()
    return str(shared or address)
