"""The glossary: what notebooks link to is there, what is there is linked, once, in the story."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(\.\./docs/glossary\.md#([^)]*)\)")
STORY = sorted((ROOT / "notebooks").glob("0*.ipynb"))


@pytest.fixture(scope="module")
def terms():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    return {
        term.replace(" ", "-"): words.strip()
        for term, words in re.findall(r"(?m)^### (.+)\n((?:(?!#).+\n?)+)", text)
    }


@pytest.fixture(scope="module")
def links():
    """(notebook, anchor) of each link, in the order of the story."""
    found = []
    for path in STORY:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                found += [(path.stem[:2], anchor) for anchor in LINK.findall(cell.source)]
    return found


def test_terms_are_headings_that_code_hosts_and_jupyterlab_anchor_alike(terms):
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    assert len(terms) == text.count("\n### ") > 60
    assert all(re.fullmatch(r"[a-z-]+", term) for term in terms)


def test_every_term_is_said_in_a_few_words_and_once(terms):
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    heads = re.findall(r"(?m)^### (.+)$", text)
    assert len(heads) == len(set(heads))
    assert {term for term, words in terms.items() if not 5 <= len(words.split()) <= 60} == set()


def test_links_and_terms_are_the_same_and_each_link_stands_once(terms, links):
    anchors = [anchor for _, anchor in links]
    assert sorted(anchors) == sorted(terms)


def test_the_first_notebook_names_the_paper_and_spells_its_method_out():
    text = STORY[0].read_text("utf-8")
    assert (
        "prototype-based image prompting" in text and "(https://arxiv.org/abs/2503.12068)" in text
    )


@pytest.mark.parametrize("path", STORY, ids=lambda path: path.stem)
def test_no_code_of_a_list_that_is_nowhere(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells)
    assert re.findall(r"\b[ME]\d{1,2}\b", prose) == []
