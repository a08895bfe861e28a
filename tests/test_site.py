"""The site: anchors, links, formulas and figures of a small kit by value, and the whole of it once:
every link leads to a page and a heading that are there, every picture has words."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from protolib.teach import site

ROOT = Path(__file__).resolve().parent.parent
PNG = base64.b64encode(b"\x89PNG, not really").decode()


@pytest.fixture
def kit(tmp_path):
    """A kit of a README with a picture, a notebook with a figure and a table, and a page."""
    kit = tmp_path / "kit"
    (kit / "notebooks").mkdir(parents=True)
    (kit / "docs").mkdir()
    (kit / "docs" / "p.png").write_bytes(b"picture")
    (kit / "README.md").write_text(
        "# Kit\n![words](docs/p.png)\n[one](notebooks/00_a.ipynb) [code](protolib/bank.py)\n"
    )
    (kit / "docs" / "glossary.md").write_text("# Glossary\n### Dice, and `code`\nTwice.\n")
    new = nbformat.v4
    shown = new.new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"})
    shown.metadata = {"image/png": {"alt": 'the "idea"'}}
    table = "<style>x</style><table border='0'><tr><td>1 < 2</td></tr></table>"
    cells = [
        new.new_markdown_cell("# 00 A\n[Dice](../docs/glossary.md#dice-and-code) is $2x$."),
        new.new_code_cell("print('<b>')", outputs=[new.new_output("stream", text="<b>\n")]),
        new.new_code_cell("fig", outputs=[shown]),
        new.new_code_cell(
            "table", outputs=[new.new_output("execute_result", {"text/html": table})]
        ),
        new.new_code_cell("install()", metadata={"jupyter": {"source_hidden": True}}),
    ]
    nbformat.write(new.new_notebook(cells=cells), kit / "notebooks" / "00_a.ipynb")
    return kit


def publish(kit, address):
    (kit / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')


def test_a_heading_gets_the_anchor_that_code_hosts_give_it():
    assert site.anchor("Dice is not 2 mIoU / (1 + mIoU)") == "dice-is-not-2-miou--1--miou"
    assert site.anchor("H&amp;E, and <code>code</code>") == "he-and-code"


def test_a_site_holds_pages_styles_and_the_pictures_that_they_show(kit, tmp_path):
    out = tmp_path / "site"
    pages = [page.relative_to(out).as_posix() for page in site.write(kit, out)]
    assert pages == ["index.html", "notebooks/00_a.html", "docs/glossary.html"]
    held = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert held == {*pages, "site.css", "docs/p.png"}
    assert (out / "docs" / "p.png").read_bytes() == b"picture"


def test_links_lead_to_pages_and_others_to_the_repository_or_nowhere(kit, tmp_path):
    site.write(kit, tmp_path / "a")
    index = (tmp_path / "a" / "index.html").read_text()
    assert '<a href="notebooks/00_a.html">one</a> code' in index
    publish(kit, "https://example.org/your_name/kit")  # nobody has said yet
    site.write(kit, tmp_path / "a")
    assert (tmp_path / "a" / "index.html").read_text() == index
    publish(kit, "https://example.org/kit")
    site.write(kit, tmp_path / "b")
    index = (tmp_path / "b" / "index.html").read_text()
    assert '<a href="https://example.org/kit/blob/main/protolib/bank.py">code</a>' in index
    page = (tmp_path / "b" / "notebooks" / "00_a.html").read_text()
    assert '<a href="../docs/glossary.html#dice-and-code">Dice</a>' in page
    assert 'id="dice-and-code"' in (tmp_path / "b" / "docs" / "glossary.html").read_text()


def test_a_notebook_is_shown_with_its_outputs_and_the_words_of_its_figures(kit):
    book = nbformat.read(kit / "notebooks" / "00_a.ipynb", as_version=4)
    soup = BeautifulSoup(site.notebook(book), "html.parser")
    assert [pre.get_text() for pre in soup.select("pre[tabindex]")] == ["<b>\n"]
    figure = soup.select_one("img:not(.math)")
    assert (figure["alt"], figure["src"]) == ('the "idea"', f"data:image/png;base64,{PNG}")
    assert soup.select_one("img.math")["alt"] == "2x"
    assert soup.style is None and soup.td.get_text() == "1 < 2"
    assert soup.select_one("details pre").get_text() == "install()\n"
    bare = BeautifulSoup(site.notebook(book, code=False), "html.parser")
    assert bare.select_one("img:not(.math)") == figure and not bare.select(".highlight, details")


def test_a_formula_is_a_picture_that_stands_on_the_line():
    deep, flat = site.formula(r"\frac{a}{b}"), site.formula("a")
    assert 'alt="\\frac{a}{b}"' in deep
    below = [float(re.search(r"vertical-align:-([\d.]+)em", of)[1]) for of in (deep, flat)]
    assert below[0] > 0.3 > 0.2 > below[1] >= 0
    assert site.formula(r"\frac{a}{b}") == deep
    high = [
        float(re.search(r";height:([\d.]+)em", site.markdown(text))[1])
        for text in (r"$$\frac{a}{b}$$", r"so $\frac{a}{b}$")
    ]
    assert high[0] > 1.3 * high[1]  # letters of a fraction in a line of its own are not small


def test_a_folder_of_anything_else_is_left_alone(kit, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").touch()
    with pytest.raises(ValueError, match="thesis is not empty and no site"):
        site.write(kit, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "text").exists()
    site.write(kit, tmp_path / "site")
    (tmp_path / "site" / "old.html").touch()
    site.write(kit, tmp_path / "site")
    assert not (tmp_path / "site" / "old.html").exists()


@pytest.mark.slow
def test_every_link_of_the_whole_site_leads_somewhere(tmp_path):
    pages = {
        page: BeautifulSoup(page.read_text(), "html.parser") for page in site.write(ROOT, tmp_path)
    }
    assert len(pages) > 15
    lost = []
    for page, soup in pages.items():
        assert len(soup.find_all("h1")) == 1, page
        for link in soup.select("a[href]"):
            name, _, heading = link["href"].partition("#")
            if re.match(r"\w+:", name):
                continue
            target = (page.parent / name).resolve() if name else page
            if target not in pages or heading and not pages[target].find(id=heading):
                lost.append(f"{page.name}: {link['href']}")
        pictures = soup.find_all("img")
        assert all(picture.get("alt") for picture in pictures)
        for picture in pictures:
            kept = picture["src"].startswith("data:")
            assert kept or (page.parent / picture["src"]).is_file()
        assert not soup.find_all(src=re.compile("^https?:")) and not soup.find_all("script")
    assert lost == []
