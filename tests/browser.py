"""The kit in a real browser, as a new user has it: `make browser`, and not part of `make test`.

Debian's Chromium, driven by Playwright, opens JupyterLab on copies of the notebooks at preset
smoke, runs 00 and 02 from the menu, moves a slider of 01, and opens report.html and the site.
Pictures of all are left in runs/browser/. Nothing but this machine is spoken to.
"""

import os
import re
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from protolib.study import html
from protolib.teach import desk, site

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "browser"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
MINUTES = 60_000  # ms
# of axe-core: what keeps people out
SERIOUS = ("serious", "critical")
# JupyterLab asks for files that may not be there, and says so
HARMLESS = re.compile(r"favicon|404 \(Not Found\)|WebSocket connection .* closed before")

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def chromium():
    """A browser; Debian's is installed where it is missing and may be."""
    if not Path(CHROMIUM).exists():
        if not (shutil.which("apt-get") and os.geteuid() == 0):
            pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
        command = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("chromium could not be installed: apt-get install chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of a laptop's size; what its console and the network say that is wrong fails."""
    page = chromium.new_page(viewport={"width": 1366, "height": 900})
    wrong = []

    def said(message) -> None:
        if message.type == "error" and not HARMLESS.search(message.text):
            wrong.append(message.text)

    def asked(request) -> None:
        local = r"(file|data|blob):|(https?|wss?)://(127\.0\.0\.1|localhost)[:/]"
        if not re.match(local, request.url):
            wrong.append(f"asked {request.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", asked)
    yield page
    page.close()
    assert wrong == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks at preset smoke: its address, with the token."""
    work = tmp_path_factory.mktemp("kit") / "work"
    desk.lay_out(ROOT / "notebooks", work)
    for path in work.glob("0*.ipynb"):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "code":  # no output of another run can pass for ours
                cell.source = cell.source.replace('preset = "quick"', 'preset = "smoke"')
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = (
        *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
        "--IdentityProvider.token=secret",
    )
    places = {name: str(work.parent / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    server = subprocess.Popen(
        desk.command(work, "", own),
        cwd=work.parent,
        env=os.environ | places | {"PYTHONPATH": str(ROOT), "JUPYTERLAB_SETTINGS_DIR": str(work)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(f"{address}/api"), 60)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _wait(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "nothing came in time"
        time.sleep(0.2)


def opened(page, address: str, name: str):
    """A notebook in JupyterLab, alone on its page."""
    page.goto(f"{address}/lab/workspaces/{name[:2]}/tree/work/{name}.ipynb?token=secret&reset")
    page.wait_for_selector(".jp-Notebook .jp-RenderedMarkdown h1", timeout=MINUTES)
    page.get_by_text("| Idle").wait_for(timeout=MINUTES)  # of the kernel, in the bar below


def run_all(page, address: str, name: str, minutes: int) -> dict:
    """Run > Run All Cells, until the kernel rests; what the notebook holds then."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    _wait(lambda: _ran(page, address, name), 60 * minutes)
    return _book(page, address, name)


def _book(page, address: str, name: str):
    page.keyboard.press("Control+s")
    page.wait_for_timeout(500)
    return nbformat.reads(_read(address, name), as_version=4)


def _read(address: str, name: str) -> str:
    import json

    url = f"{address}/api/contents/work/{name}.ipynb?token=secret"
    with urllib.request.urlopen(url) as answer:
        return json.dumps(json.load(answer)["content"])


def _ran(page, address: str, name: str) -> bool:
    """The last cell has a number, or some cell failed."""
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1000)
    code = [
        c for c in nbformat.reads(_read(address, name), as_version=4).cells if c.cell_type == "code"
    ]
    failed = [o for c in code for o in c.outputs if o.output_type == "error"]
    assert not failed, failed[0].ename + ": " + failed[0].evalue
    return bool(code[-1].execution_count)


@pytest.mark.parametrize("name, minutes", [("00_start_here", 3), ("02_clustering_prototypes", 6)])
def test_a_notebook_runs_from_the_menu(page, lab, name, minutes):
    opened(page, lab, name)
    page.screenshot(path=SHOTS / f"{name}-opened.png")
    book = run_all(page, lab, name, minutes)
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    pictures = [o for o in outputs if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert len(pictures) >= 2
    assert all(o.metadata.get("alt") or any(o.metadata.values()) for o in pictures)
    page.locator(".jp-OutputArea img").first.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / f"{name}-run.png")


def test_a_word_of_the_first_notebook_leads_to_the_glossary(page, lab):
    opened(page, lab, "00_start_here")
    page.get_by_role("link", name="stroma").first.click()
    shown = page.locator(".jp-MarkdownViewer h3", has_text="stroma")  # read, not edited
    shown.wait_for(timeout=MINUTES)
    page.screenshot(path=SHOTS / "glossary-in-the-lab.png")


def test_a_slider_changes_its_figure(page, lab):
    opened(page, lab, "01_dataset_exploration")
    run_all(page, lab, "01_dataset_exploration", 5)
    slider = page.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    picture = page.locator(".widget-image, img.widget-image, .jupyter-widgets img").first
    before = picture.get_attribute("src")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    _wait(lambda: picture.get_attribute("src") != before, 30)
    page.screenshot(path=SHOTS / "01_dataset_exploration-slider.png")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The site, and the report of the newest run or else of one without notebooks."""
    folder = tmp_path_factory.mktemp("pages")
    site.write(ROOT, folder / "site")
    runs = sorted((ROOT / "runs").glob("*/report.html"), key=os.path.getmtime)
    report = runs[-1] if runs else None
    if report is None:
        (folder / "run").mkdir()
        report = html.write(folder / "run")
    return {
        "report": report,
        "index": folder / "site" / "index.html",
        "notebook": folder / "site" / "notebooks" / "03_matching_loss.html",
        "glossary": folder / "site" / "docs" / "glossary.html",
    }


@pytest.mark.parametrize("name", ["report", "index", "notebook", "glossary"])
def test_a_page_opens_without_a_server_and_fits_a_phone(page, pages, name):
    page.goto(pages[name].as_uri())
    assert page.locator("h1").count() == 1
    page.screenshot(path=SHOTS / f"{name}.png")
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=SHOTS / f"{name}-phone.png")


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core, fetched once by npm into .venv/axe."""
    folder = ROOT / ".venv" / "axe"
    kept = folder / "package" / "axe.min.js"
    if not kept.exists():
        if not shutil.which("npm"):
            pytest.skip("no npm to fetch axe-core with")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "axe-core", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"axe-core could not be fetched: {done.stderr[-200:]}")
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return kept.read_text("utf-8")


@pytest.mark.parametrize("name", ["report", "index", "notebook", "glossary"])
def test_axe_finds_nothing_serious(page, pages, axe, name):
    page.goto(pages[name].as_uri())
    page.evaluate(axe)
    found = page.evaluate("axe.run({preload: false})")["violations"]
    serious = {
        v["id"]: [n["html"][:120] for n in v["nodes"][:3]] for v in found if v["impact"] in SERIOUS
    }
    assert serious == {}
