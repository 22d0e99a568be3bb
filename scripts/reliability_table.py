"""Print the tables of docs/reliability.md: what the tests put in, and what is said."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import test_bad_input as tests


def table(title: str, test: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"### {title} (`{test}`)", "", "| what | message |", "|---|---|"]
    for what, says in rows:
        what, says = (text.replace("|", "\\|").replace("\n", " ") for text in (what, says))
        lines.append(f"| {what} | {says} |")
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Return a text as code, cut short and printable."""
    text = ascii(text)[1:-1]
    return f"`{text[:60]}{'...' * (len(text) > 60)}`"


def main() -> None:
    """Print all tables."""
    says = {name: case[1] or "read, as any other image" for name, case in tests.IMAGES.items()}
    settings = ((code(text), code(line)) for text, line in tests.SETTINGS.items())
    options = ((code(" ".join(words)), code(line)) for words, line in tests.OPTIONS)
    runs = ((case, code(line)) for case, (_, line) in tests.BAD_RUNS.items())
    images = ((code(name), line) for name, line in says.items())
    print(table("Settings in YAML", "tests/test_bad_input.py::test_settings", settings))
    print(table("Options", "tests/test_bad_input.py::test_options", options))
    print(table("Images", "tests/test_bad_input.py::test_images", images))
    print(table("Adapters and runs", "tests/test_bad_input.py::test_runs", runs))


if __name__ == "__main__":
    main()
