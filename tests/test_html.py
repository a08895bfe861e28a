"""The page of a run: contents, figures in the order of the story with its questions, and fewer
bytes for the same picture."""

import io

import matplotlib

matplotlib.use("Agg")
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from protolib import files
from protolib.study import html

new = nbformat.v4


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="png")
    return out.getvalue()


@pytest.fixture
def page(tmp_path):
    """The page of a run whose one notebook draws b, then two bands, then a; c is drawn nowhere."""
    cells = [
        new.new_markdown_cell("# 04 *Maps*\n\n**Question:** where, and\nwhy [here](x.md)?"),
        new.new_code_cell('viz.save(fig, run.folder, "04_b", caption)'),
        new.new_markdown_cell("It is here.\n\n**Question.** Is `this` normal?"),
        new.new_code_cell(
            'for m in methods:\n    viz.save(fig, run.folder, f"04_band_{m}", caption)'
        ),
        new.new_markdown_cell("Nothing is asked."),
        new.new_code_cell("viz.save(fig, run.folder, '04_x', '')\nviz.save(fig, f, \"04_a\", '')"),
    ]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "notebooks" / "04_maps.ipynb")
    for name in ("04_a", "04_b", "04_band_cam", "04_band_pbip", "04_c"):
        with files.whole(tmp_path / "figures" / f"{name}.png") as file:
            file.write(png(np.zeros((2, 2, 3), np.uint8)))
    return BeautifulSoup(html.write(tmp_path).read_text("utf-8"), "html.parser")


def test_figures_stand_as_the_notebook_has_them_each_after_its_question(page):
    head = page.find("h2", string="04 Maps")
    said = [tag.get("alt") or tag.get_text() for tag in head.find_all_next(["p", "img", "h2"])]
    assert said[: said.index("Time and memory")] == [
        "04_maps",
        "Where, and why here?",
        "b",
        "Is this normal?",
        "band cam",
        "band pbip",
        "a",
        "c",
    ]


def test_contents_lead_to_every_section(page):
    links = {a["href"]: a.get_text() for a in page.select("nav a")}
    assert list(links.values()) == ["Scores on the test split", "04 Maps", "Time and memory"]
    assert all(page.find(id=href[1:]).get_text() == text for href, text in links.items())


def test_two_sections_of_one_name_have_a_link_each():
    body = html.with_contents("<h2>A</h2>\n<h2>A</h2>")
    assert body.endswith('<h2 id="part-1">A</h2>\n<h2 id="part-2">A</h2>')


def test_a_picture_of_few_colours_is_kept_exactly_and_one_of_many_nearly():
    chart = np.zeros((90, 120, 3), np.uint8)
    chart[20:40] = (213, 94, 0)
    kept = np.array(Image.open(io.BytesIO(html._smaller(png(chart)))).convert("RGB"))
    np.testing.assert_array_equal(kept, chart)
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[:256, :256], 128), axis=-1).astype(np.uint8)
    noisy = ramp + np.random.default_rng(0).integers(0, 2, ramp.shape, np.uint8)
    smaller = html._smaller(png(noisy))
    kept = np.array(Image.open(io.BytesIO(smaller)).convert("RGB")).astype(int)
    assert len(smaller) < len(png(noisy)) / 2
    assert np.abs(kept - noisy).mean() < 6  # of 255


def test_what_is_no_picture_stays_as_it_is():
    assert html._smaller(b"no picture") == b"no picture"
