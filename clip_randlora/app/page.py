"""The page: Gradio's, with one element that ``page/main.js`` fills; and the endpoints it calls."""

from __future__ import annotations

import gradio as gr

from clip_randlora.app.endpoints import Endpoints
from clip_randlora.app.routes import PAGE
from clip_randlora.app.service import Service

HEAD = "".join(
    [
        '<link rel="stylesheet" href="page/page.css">',
        *(f'<link rel="modulepreload" href="page/{p.name}">' for p in sorted(PAGE.glob("*.js"))),
    ]
)
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from a network
_MONO = ["ui-monospace", "Consolas", "monospace"]
_START = "import(new URL('page/main.js', document.baseURI)).then(main => main.start(element));"


def theme() -> gr.themes.Base:
    """Return the look of the page, light and dark."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO)


def build(service: Service) -> gr.Blocks:
    """Return what Gradio launches."""
    with gr.Blocks(title="clip-randlora", analytics_enabled=False) as blocks:
        gr.HTML(
            (PAGE / "page.html").read_text(encoding="utf-8"),
            elem_id="clip-randlora",
            js_on_load=_START,
            apply_default_css=False,
        )
        Endpoints(service)
        blocks.load(service.arrive, api_visibility="private", queue=False)
        blocks.unload(service.leave)
    return blocks
