"""The documentation site: built once, without a warning, then opened in a real browser."""

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import mapet
from browser import chromium
from mapet.cli.verbs import SUBVERBS, VERBS

ROOT = Path(__file__).parents[1]
TUTORIALS = ("cifar10", "photographs", "leaks")
SEEN_BY_AXE = ("index", "start", "own-images", "method", "peers", "faq", "tutorials/leaks", "records/contributing")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site and what the build printed."""
    for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "ipykernel"):
        pytest.importorskip(name, reason="needs the site's packages (pip install 'mapet[docs]')")
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--color", str(ROOT / "docs"), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout[-2000:]
    return out


def pages(out):
    return sorted(path for path in out.rglob("*.html") if "_static" not in path.parts)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.mark.timeout(1500)
def test_it_is_built_without_a_warning(built):
    assert {path.stem for path in (ROOT / "docs").rglob("*.md")} <= {path.stem for path in pages(built)}


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_are_executed_and_draw(built, name):
    text = (built / "tutorials" / f"{name}.html").read_text()
    if reason := re.search(r"This page was built without its outputs: (.*?)</p>", text):
        pytest.skip(html.unescape(reason[1]))
    outputs = text.split('class="cell_output')[1:]
    assert len(outputs) > 3
    assert any("<img" in output for output in outputs)
    assert "Traceback" not in text


def test_the_references_are_complete(built):
    python, line = ((built / "reference" / name).read_text() for name in ("python.html", "cli.html"))
    assert not [name for name in mapet.__all__ if f'id="mapet.{name}"' not in python]
    verbs = [verb for verb in VERBS if verb != "tokenizer"]
    assert {f"tokenizer {verb}" for verb in SUBVERBS} <= set(verbs)
    assert not [verb for verb in verbs if f">mapet {verb}<" not in line or f"usage: mapet {verb}" not in line]


def test_every_link_leads_somewhere(built):
    ids = {path: set(re.findall(r'\bid="([^"]+)"', path.read_text())) for path in pages(built)}
    lost = []
    for path in ids:
        for link in re.findall(r'(?:href|src)="([^"]+)"', path.read_text()):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            if not there.exists() or (anchor and there in ids and unquote(anchor) not in ids[there]):
                lost.append(f"{path.relative_to(built)}: {link}")
    assert not lost


def test_messages_that_the_page_of_questions_explains_are_in_the_source():
    source = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    explained = re.findall(r"^`(.+)`\n: ", (ROOT / "docs" / "faq.md").read_text(), re.M)
    assert len(explained) > 20
    fragments = [part for message in explained for part in re.split('[…"]', message) if len(part.strip()) > 3]
    assert not [part for part in fragments if part.strip() not in source]


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(built, browser, width):
    """No error in the console, no broken image, no horizontal scroll."""
    found = {}
    for path in pages(built):
        browser.open(path, width)
        found[path.relative_to(built).as_posix()] = browser.faults()
    assert not {name: faults for name, faults in found.items() if faults}


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_nothing_serious_for_axe(built, browser, width, dark):
    found = {}
    for name in SEEN_BY_AXE:
        browser.open(built / f"{name}.html", width, dark)
        found[name] = browser.serious()
    assert not {name: serious for name, serious in found.items() if serious}
