"""Blocks to the letter: Markdown with and without a terminal's width, and HTML."""

import pytest

from protolib.blocks import Heading, Items, Paragraph, Table, markdown, numeric
from protolib.study.html import written

SCORES = Table(
    ["method", "mIoU (%)", "note"],
    [["CAM", "50.0", "ours"], ["PBIP stage 1", "–", ""]],
    ["Two methods.", "One seed."],
)
ODD = (
    "a|b <i> *c* _d_ e_f $g$ [h](i) R&amp;D ~~j~~ \\k"  # each mark that Markdown has within a line
)


def test_markdown_to_the_letter():
    some = [
        Heading("Top", level=1),
        Paragraph("Some words."),
        Paragraph("too few", warning=True),
        Items(["one", "two"]),
        SCORES,
    ]
    assert (
        markdown(some)
        == """\
# Top

Some words.

WARNING: too few

- one
- two

Two methods.

One seed.

| method       | mIoU (%) | note |
|--------------|---------:|------|
| CAM          |     50.0 | ours |
| PBIP stage 1 |        – |      |
"""
    )


def test_html_to_the_letter():
    some = [Heading("A & B"), Paragraph("too few", warning=True), Items(["<1>"]), SCORES]
    assert (
        written(some)
        == """\
<h2>A &amp; B</h2>
<p class=warning>WARNING: too few</p>
<ul>
<li>&lt;1&gt;</li>
</ul>
<figure><figcaption><p>Two methods.</p><p>One seed.</p></figcaption>
<div class="wide" tabindex="0"><table>
<thead><tr><th class="text">method</th><th>mIoU (%)</th><th class="text">note</th></tr></thead>
<tbody><tr><td class="text">CAM</td><td>50.0</td><td class="text">ours</td></tr>
<tr><td class="text">PBIP stage 1</td><td>–</td><td class="text"></td></tr></tbody>
</table></div></figure>"""
    )


def test_marks_in_a_title_move_and_break_nothing():
    escaped = r"a\|b \<i> \*c\* \_d\_ e_f \$g\$ [h\](i) R\&amp;D \~\~j\~\~ \\k"
    lines = markdown([Table(["x", "y"], [[ODD, "1.0"]], [ODD])]).splitlines()
    assert lines[0] == escaped
    assert lines[-1] == f"| {escaped} | 1.0 |"
    assert len({len(line) for line in lines[2:]}) == 1  # padded with its marks
    page = written([Table(["x"], [[ODD]])])
    assert "<td>" not in page and "<i>" not in page
    assert "a|b &lt;i&gt; *c* _d_ e_f $g$ [h](i) R&amp;amp;D ~~j~~ \\k</td>" in page


def test_a_renderer_of_markdown_shows_what_was_said():
    """mistune, which nbconvert renders notebooks with, as a slow reference."""
    mistune = pytest.importorskip("mistune")
    render = mistune.create_markdown(plugins=["table", "strikethrough"])
    shown = written([Paragraph(ODD)]).replace("<p>", "").replace("</p>", "")
    assert render(markdown([Paragraph(ODD)])) == f"<p>{shown}</p>\n"
    page = render(markdown([Table(["x", "y"], [[ODD, "1.0"], ["b", "2.0"]])]))
    assert page.count("<td") == 4 and f"<td>{shown}</td>" in page


@pytest.mark.parametrize(
    "text, shown",
    [
        ("# 3", r"\# 3"),
        ("- 3", r"\- 3"),
        ("+ 3", r"\+ 3"),
        ("> 3", r"\> 3"),
        ("3. x", r"3\. x"),
        ("3) x", r"3\) x"),
        ("---", r"\---"),
        ("-3 and +.5 of 3.5", "-3 and +.5 of 3.5"),
        ("two\n\nlines", "two lines"),
    ],
)
def test_a_text_that_begins_like_a_block_is_none(text, shown):
    assert markdown([Paragraph(text)]) == f"{shown}\n"
    assert markdown([Items([text])]) == f"- {shown}\n"


def test_a_terminal_breaks_paragraphs_and_items():
    words = " ".join(["word"] * 6)
    assert markdown([Paragraph(words)], width=20) == "word word word word\nword word\n"
    assert markdown([Items([words])], width=20) == "- word word word\n  word word word\n"
    for mark in ("-", "+", "#", "==", "3.", ">4"):  # it stays with the word before it
        broken = markdown([Paragraph(f"long words then {mark} 3")], width=16)
        assert broken == f"long words\nthen {mark} 3\n"
    assert markdown([Paragraph("w" * 30)], width=20) == "w" * 30 + "\n"


def test_a_table_that_is_too_wide_is_written_as_several():
    table = Table(["row", "first", "second", "third"], [["a", "1", "2", "3"]])
    first = "| row | first | second |\n|-----|------:|-------:|\n| a   |     1 |      2 |"
    rest = "| row | third |\n|-----|------:|\n| a   |     3 |"
    assert markdown([table], width=24) == f"{first}\n\n{rest}\n"
    assert markdown([table], width=32) == markdown([table])  # 32 columns
    assert markdown([table], width=31).count("| row |") == 2
    assert markdown([table], width=1).count("| row |") == 3  # each column once, whatever its width


def test_columns_of_numbers():
    rows = [["1", "-1.5 ± .2", "", "–", "1 a"], ["2", "+.5", "3", "4.0", "b"]]
    assert numeric(Table("abcde", rows)) == [False, True, True, True, False]
    assert numeric(Table("ab", [])) == [False, True]
