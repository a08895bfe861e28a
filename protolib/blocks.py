"""Text made of blocks, which are written as Markdown here and as HTML in study/html.py.

A block holds plain text. Whatever Markdown would take for a mark, in the title of a class say, is
escaped when it is written.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from protolib.files import printed

TERMINAL = 100  # columns
NUMBER = re.compile(r"[+-]?\.?\d.*|–|")  # also a number with its ±, a dash or nothing
# Everywhere: \ | < * $ ~, an entity, a link, and _ unless letters or digits stand on both sides.
MARK = re.compile(r"[\\|<*$~]|&(?=#?\w+;)|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_])")
# At the start of a line: a heading, a list, a rule or a quote.
START = re.compile(r"^(\d*)(?=[#+=-]+(?: |$)|(?<=\d)[.)](?: |$)|>)")
# No line of a terminal begins with one of them either.
GLUED = re.compile(r" (?=(?:[#+=-]+|\d+[.)]|>\S*)(?: |$))")


class Heading(NamedTuple):
    """A title; level 1 is the page's own."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """One text; a warning is marked as such."""

    text: str
    warning: bool = False


class Items(NamedTuple):
    """A list, one text an item."""

    texts: Sequence[str]


class Table(NamedTuple):
    """Heads, rows of as many texts, and the paragraphs that stand above them."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[str] = ()


Block = Heading | Paragraph | Items | Table


def numeric(table: Table) -> list[bool]:
    """Which columns hold numbers, or nothing, in every row: those are set to the right."""
    columns = list(zip(*table.rows)) or [("",)] * len(table.heads)
    return [i > 0 and all(map(NUMBER.fullmatch, column)) for i, column in enumerate(columns)]


def markdown(blocks: Iterable[Block], width: int | None = None) -> str:
    """Blocks as Markdown, an empty line between two of them. Notebook 07.

    width: columns of a terminal. Paragraphs and items are wrapped there, and a table that is wider
    is written as several, each beginning with its first column again. None: nothing is broken.
    """
    return "\n\n".join(part for block in blocks for part in _written(block, width)) + "\n"


def _written(block: Block, width: int | None) -> Iterator[str]:
    match block:
        case Heading(text, level):
            yield f"{'#' * level} {_escaped(text)}"
        case Paragraph(text, warning):
            yield _wrapped("WARNING: " * warning + text, width)
        case Items(texts):
            yield "\n".join(_wrapped(text, width, "- ") for text in texts)
        case Table(caption=caption):
            yield from (_wrapped(text, width) for text in caption)
            yield from _tables(block, width)


def _escaped(text: str) -> str:
    """One line of text that Markdown, and a terminal, shows as it is."""
    return MARK.sub(r"\\\g<0>", printed(" ".join(text.split())))


def _wrapped(text: str, width: int | None, prefix: str = "") -> str:
    line = START.sub(r"\1\\", _escaped(text))
    if not width:
        return prefix + line
    lines = textwrap.wrap(
        GLUED.sub("\0", line),
        width,
        initial_indent=prefix,
        subsequent_indent=" " * len(prefix),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


def _tables(table: Table, width: int | None) -> Iterator[str]:
    """The table, or its columns in turn beside the first where it is wider than `width`."""
    rows = [[_escaped(text) for text in row] for row in (table.heads, *table.rows)]
    sizes = [max(map(len, column)) for column in zip(*rows)]
    right = numeric(table)
    part, used = [0], sizes[0] + 4  # "| " before the first column, " |" after it
    for i in range(1, len(sizes)):
        if width and part != [0] and used + sizes[i] + 3 > width:
            yield _grid(rows, part, sizes, right)
            part, used = [0], sizes[0] + 4
        part, used = [*part, i], used + sizes[i] + 3
    yield _grid(rows, part, sizes, right)


def _grid(
    rows: Sequence[Sequence[str]], part: Sequence[int], sizes: Sequence[int], right: Sequence[bool]
) -> str:
    """These columns of the rows, head first, padded for the eye."""

    def line(row: Sequence[str]) -> str:
        padded = (row[i].rjust(sizes[i]) if right[i] else row[i].ljust(sizes[i]) for i in part)
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (sizes[i] + 1) + ("-:"[right[i]]) for i in part)
    head, *body = map(line, rows)
    return "\n".join([head, f"|{rule}|", *body])
