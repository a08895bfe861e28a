"""The kit in a real browser, as a new user has it: `make browser`, and not part of `make test`.

Debian's Chromium, driven by Playwright, opens JupyterLab on copies of the notebooks at preset
smoke, runs each from the menu, moves every control, and opens report.html, the site and the slides.
Pictures of all are left in runs/browser/. Nothing but this machine is spoken to.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import nbformat
import pytest

from protolib.study import html
from protolib.teach import desk, editions, site

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
    """A notebook as its file has it; asked again where JupyterLab is just writing it."""
    url, found = f"{address}/api/contents/work/{name}.ipynb?token=secret", []

    def whole() -> bool:
        try:
            found.append(json.loads(_asked(url))["content"])
        except urllib.error.HTTPError as error:
            if error.code != 400:  # half a notebook is a bad request
                raise
        return bool(found)

    _wait(whole, 30)
    return json.dumps(found[0])


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


NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))


@pytest.fixture
def sessions(lab):
    """Kernels end with their test: nine at once take more memory than a laptop has."""
    yield
    for session in json.loads(_asked(f"{lab}/api/sessions?token=secret")):
        _asked(f"{lab}/api/sessions/{session['id']}?token=secret", "DELETE")


def _asked(address: str, method: str = "GET") -> str:
    with urllib.request.urlopen(urllib.request.Request(address, method=method)) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_the_menu_and_its_controls_change_their_figures(
    page, lab, sessions, name
):
    opened(page, lab, name)
    page.screenshot(path=SHOTS / f"{name}-opened.png")
    book = run_all(page, lab, name, 8)
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    pictures = [o for o in outputs if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert len(pictures) >= 2
    assert all(o.metadata.get("alt") or any(o.metadata.values()) for o in pictures)
    look_at(page, page.locator(".jp-OutputArea img").first)
    page.screenshot(path=SHOTS / f"{name}-run.png")
    played = sum("viz.play(" in cell.source for cell in book.cells)
    assert len(boxes(page, played)) == played
    for n, box in enumerate(boxes(page, played)):
        picture, seconds = box.locator("img.widget-image, .widget-image img").last, []
        for move in moves(box):
            before, start = picture.get_attribute("src"), time.perf_counter()
            move()
            _wait(lambda p=picture, b=before: p.get_attribute("src") != b, 30)
            seconds.append(time.perf_counter() - start)
        print(f"{name}, control {n + 1}: " + ", ".join(f"{s:.2f}" for s in seconds) + " s")
        box.screenshot(path=SHOTS / f"{name}-control-{n + 1}.png")


def look_at(page, place):
    """Bring a place to the screen and wait until it stays there: JupyterLab draws cells when they
    come near, and moves all when it learns their heights."""
    seen = []

    def still() -> bool:
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        seen.append(box)
        on = box is not None and box["y"] < 800 and box["y"] + box["height"] > 100
        return on and seen[-3:] == 3 * [box]

    _wait(still, 30)


def boxes(page, played: int) -> list:
    """What viz.play shows: controls over a picture. A cell far from the screen is not there yet."""
    found = page.locator(".jp-OutputArea .widget-vbox:has(img)")
    for _ in range(60):
        if found.count() >= played:
            break
        page.locator(".jp-WindowedPanel-outer").first.press("PageDown")
        page.wait_for_timeout(100)
    return found.all()


def moves(box) -> list:
    """A move of each control of a box that changes its value."""
    found = []
    for handle in box.get_by_role("slider").all():
        now, most = (float(handle.get_attribute(f"aria-value{of}")) for of in ("now", "max"))
        found.append(partial(handle.press, "ArrowLeft" if now >= most else "ArrowRight"))
    for list_ in box.locator("select").all():
        found.append(partial(list_.select_option, index=1))
    for buttons in box.locator(".widget-toggle-buttons, .jupyter-widget-toggle-buttons").all():
        found.append(buttons.locator("button:not(.mod-active)").first.click)
    return found


def test_a_word_of_the_first_notebook_leads_to_the_glossary(page, lab):
    opened(page, lab, "00_start_here")
    page.get_by_role("link", name="stroma").first.click()
    shown = page.locator(".jp-MarkdownViewer h3", has_text="stroma")  # read, not edited
    shown.wait_for(timeout=MINUTES)
    page.screenshot(path=SHOTS / "glossary-in-the-lab.png")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The site, slides, and the report of the newest run or else of one without notebooks."""
    folder = tmp_path_factory.mktemp("pages")
    site.write(ROOT, folder / "site")
    editions.write(ROOT / "notebooks", "slides", folder)
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
        "slides": folder / "slides" / "notebooks" / "03_matching_loss.html",
        "start": folder / "slides" / "start here.html",
    }


PAGES = ("report", "index", "notebook", "glossary", "slides", "start")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_server_and_fits_a_phone(page, pages, name):
    page.goto(pages[name].as_uri())
    assert page.locator("h1").count() == 1
    page.screenshot(path=SHOTS / f"{name}.png")
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=SHOTS / f"{name}-phone.png")


def test_slides_turn_by_the_keys_of_the_browser_and_fit_the_screen(page, pages):
    page.goto(pages["slides"].as_uri())
    shown = "Math.round(document.documentElement.scrollTop / innerHeight * 100) / 100"
    high = "[...document.querySelectorAll('section')].map(s => s.offsetHeight / innerHeight)"
    heights = page.evaluate(high)
    for n in range(1, 12):
        page.keyboard.press("PageDown")
        _wait(lambda n=n: page.evaluate(shown) == pytest.approx(sum(heights[:n]), abs=0.02), 5)
        page.wait_for_timeout(300)
        page.screenshot(path=SHOTS / f"slide-{n + 1:02}.png")
    page.keyboard.press("PageUp")
    _wait(lambda: page.evaluate(shown) == pytest.approx(sum(heights[:10]), abs=0.02), 5)
    assert sum(height > 1.01 for height in heights) <= 0.1 * len(heights)  # those scroll
    sheets = page.pdf(path=SHOTS / "slides.pdf", prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", sheets)) == len(heights)


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


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page, pages, axe, name):
    page.goto(pages[name].as_uri())
    page.evaluate(axe)
    found = page.evaluate("axe.run({preload: false})")["violations"]
    serious = {
        v["id"]: [n["html"][:120] for n in v["nodes"][:3]] for v in found if v["impact"] in SERIOUS
    }
    assert serious == {}
