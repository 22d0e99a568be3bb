"""The pages: every public name is on one, and no link leads nowhere."""

import re
import shlex
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import datasets
import open_clip
import pandas
import pytest
import torch
import typer
import yaml
from PIL import Image

import clip_randlora as cr
from clip_randlora import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]


def test_the_reference_has_every_public_name_once():
    shown = re.findall(r"^::: clip_randlora\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
    assert sorted(shown) == sorted(cr.__all__)


def test_the_site_leads_to_every_page_once():
    def pages(entries) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        named = (value for entry in entries for value in entry.values())
        return [page for value in named for page in pages(value)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert Counter(nav) == Counter(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page):
    """To files and their headings, by GitHub's rule; pages elsewhere are not asked."""
    text = without_code(page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@cache
def anchors(page: Path) -> set[str]:
    found: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.M):
        plain = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# --- commands and Python

COMMANDS = [
    pytest.param(line.strip(), id=f"{page.name}: {line.strip()}")
    for page in PAGES
    for line in re.findall(
        r"^    (?:.* -m )?(?:clip-randlora|clip_randlora) .*", page.read_text(), re.M
    )
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_takes_what_the_page_gives_it(line):
    """Their doing is tested by command; a synopsis, with brackets, may name options only."""
    (part,) = [part for part in line.split(" | ") if re.search("clip[-_]randlora ", part)]
    words = shlex.split(part, comments=True)
    group = typer.main.get_command(cli.app)
    start = next(n for n, word in enumerate(words) if re.fullmatch("clip[-_]randlora", word))
    name, *arguments = words[start + 1 :]
    if name.startswith("--"):
        assert name in options_of(group)
    elif "[" in line:
        assert {word.strip("[]") for word in arguments if "--" in word} <= options_of(
            group.commands[name]
        )
    else:
        group.commands[name].make_context(name, arguments)


def options_of(command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def blocks_of(page: Path) -> list[str]:
    """Its blocks of Python; one that no test can run has the reason in the line above it."""
    found = re.findall(r"([^\n]*)\n```python\n(.*?)^```", "\n" + page.read_text(), re.M | re.S)
    return [code for above, code in found if not re.search(r"<!-- not run: .+ -->", above)]


@pytest.fixture
def folder(tiny_run, drawings, tmp_path, monkeypatch) -> Path:
    """Where the pages' files are: drawings as photos, and a run of the small model."""
    shutil.copytree(drawings / "train", tmp_path / "photos")
    first, *_ = sorted((drawings / "test").rglob("*.webp"))
    shutil.copy(first, tmp_path / "cat.jpg")
    shutil.copytree(tiny_run, tmp_path / "runs" / "pets")
    files = [f"{path.parent.name}/{path.name}" for path in (tmp_path / "photos").rglob("*.webp")]
    for table, place in (("labels.csv", "photos/"), ("photos/species.csv", "")):
        rows = [f"{place}{file},{Path(file).parent}" for file in sorted(files)]
        (tmp_path / table).write_text("\n".join(["file,species", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page, folder, quick_folder, monkeypatch):
    """One block after the other, with the small model in place of a page's, and few steps."""
    if any("cr.fit(" in code for code in blocks_of(page)):
        shutil.rmtree(folder / "runs")
    load_model, create_model, fit = cr.load_model, open_clip.create_model, cr.fit

    def fit_shortly(model, data, config=None, **options) -> cr.Run:
        config = (config or cr.TrainConfig()).model_copy(update={"steps": 2})
        return fit(model, data, config, **options)

    monkeypatch.setattr(cr, "fit", fit_shortly)
    monkeypatch.setattr(cr, "load_model", lambda *_: load_model(str(quick_folder)))
    local = f"local-dir:{quick_folder}"
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **options: create_model(local))
    frame = pandas.read_csv("labels.csv")
    images = [Image.open(path).convert("RGB") for path in frame["file"]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(3)})
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": [number // 2 for number in range(6)]}, features
    )
    pixels, tokens = torch.rand(2, 3, 32, 32), torch.ones(3, 77, dtype=torch.long)
    batches = [(pixels, tokens, torch.tensor([0, 2]))]
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    names = {"cr": cr, "pd": pandas, "frame": frame, "dataset": dataset, "batches": batches}
    names |= {"model": cr.load_model("lite0"), "data": cr.load_data("photos")}
    for code in blocks_of(page):
        exec(compile(code, page.name, "exec"), names)
