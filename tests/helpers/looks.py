"""What can be measured of how a page looks: contrast, overflow, focus, layout shift."""

from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def measure(page, what: str) -> Any:
    return page.evaluate(f"{SCRIPT}.{what}()")


def low_contrasts(page) -> list[str]:
    """Return the visible texts whose contrast to what is behind them is below WCAG's AA."""
    return measure(page, "contrast")


def overflows(page) -> bool:
    """Return whether the page can be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def tab_through(page) -> tuple[int, int, list[str]]:
    """Press Tab through the page: controls that are there, that were reached, without outline."""
    controls = measure(page, "controls")
    page.evaluate("document.activeElement?.blur(); window.seen = new Map(); scrollTo(0, 0)")
    reached, plain = set(), []
    for _ in range(controls + 40):
        page.keyboard.press("Tab")
        focused = measure(page, "focused")
        if focused is None:
            continue
        if focused["id"] in reached and focused["id"] == 0:
            break
        reached.add(focused["id"])
        if not focused["outline"]:
            plain.append(focused["what"])
    return controls, len(reached), plain


def watch_shifts(page) -> None:
    """Begin to add up the layout shift that no input caused."""
    page.evaluate("""() => {
      window.shift = 0;
      window.shifted = [];
      new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
        if (entry.hadRecentInput) return;
        window.shift += entry.value;
        window.shifted.push(...entry.sources.map((s) => s.node?.className || s.node?.nodeName));
      })).observe({ type: "layout-shift" });
    }""")


def shift(page) -> tuple[float, list[str]]:
    """Return the layout shift since `watch_shifts`, and what moved."""
    return page.evaluate("[window.shift, window.shifted]")
