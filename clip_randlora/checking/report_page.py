"""The report of a check: one HTML file with thumbnails in it, which loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from pathlib import Path

from clip_randlora.checking.findings import Findings
from clip_randlora.checking.problems_file import Problem, list_problems
from clip_randlora.data import Item, UnreadableImage
from clip_randlora.utils.outputs import write_text
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress, report_progress

MOST = 200  # images of a kind of problem that are shown; a CSV has all
_SIDE = 112  # of a thumbnail, in pixels
_QUALITY = 75
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
.images { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: 9rem; border: 1px solid #8886; border-radius: .5rem; padding: .5rem; }
img { display: block; width: 7rem; height: 7rem; object-fit: contain; background: #fff; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; margin-top: .4rem; }
small { opacity: .7; }
"""


def write_report(
    findings: Findings, path: str | Path, title: str, on_progress: OnProgress | None = None
) -> None:
    """Write the report; the first ``MOST`` images of each kind of problem are in it.

    Args:
        findings: from `check_images`.
        path: of the HTML file.
        title: names the data.
        on_progress: told how many thumbnails are made.

    Raises:
        UserError: the file cannot be written.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in list_problems(findings):
        kinds.setdefault(problem.problem, []).append(problem)
    shown = [problem for problems in kinds.values() for problem in problems[:MOST]]
    images = [findings.items[p.index] for p in shown if p.index is not None]
    thumbnails = report_progress(
        parallel_map(_thumbnail, images), "making thumbnails", len(images), on_progress
    )
    addresses = iter(list(thumbnails))
    parts = [_section(kind, problems, addresses) for kind, problems in kinds.items()]
    body = "\n".join(parts) or "<p>Nothing was found.</p>"
    title = escape(f"{title}: {len(findings.items)} images checked")
    write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{_notes(findings.notes)}{body}\n</html>\n",
    )


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p>{escape(note)}</p>\n" for note in notes)


def _section(kind: str, problems: Sequence[Problem], addresses: Iterable[str]) -> str:
    """Return the part on one kind of problem; takes an address for each image that it shows."""
    shown = problems[:MOST]
    own = iter(list(islice(addresses, sum(p.index is not None for p in shown))))
    cards = "\n".join(_card(p, next(own) if p.index is not None else "") for p in shown)
    more = f"<p>And {len(problems) - MOST} more.</p>" if len(problems) > MOST else ""
    heading = f"{kind[:1].upper()}{kind[1:]}: {len(problems)}"
    return f'<h2>{escape(heading)}</h2>\n<div class="images">\n{cards}\n</div>\n{more}'


def _card(problem: Problem, address: str) -> str:
    said = problem.detail
    if problem.certainty is not None:
        said = f"{problem.suggestion}? {problem.certainty:.0%} sure"
    picture = f'<img alt="" src="{address}">' if address else ""
    where = " · ".join(filter(None, (problem.split, problem.given)))
    return (
        f"<figure>{picture}<figcaption>{escape(said)}<br>{escape(where)}<br>"
        f"<small>{escape(problem.image)}</small></figcaption></figure>"
    )


def _thumbnail(item: Item) -> str:
    """Return a small JPEG as a data address, "" if the file can no longer be read."""
    try:
        image = item.open(_SIDE)
    except UnreadableImage:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
