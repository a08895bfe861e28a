"""Pages with tables and figures, readable without network, on a phone and in the dark: a run's, and
the ledger's."""

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import chain, groupby
from pathlib import Path
from string import Template

from protolib import blocks, files, results
from protolib.blocks import Block, Heading, Items, Paragraph, Table
from protolib.study import report

# how every page of the kit begins; it asks for no other file, not even an icon
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
"""
PAGE = Template(
    HEAD
    + """\
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --line: #d5dae0; --page: #fff;
        --band: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3adb8; --line: #3a424c; --page: #14181d; --band: #1c2228; }
}
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--page);
       color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); }
.from { color: var(--soft); font-size: .9rem; margin: .2rem 0 0; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin: .5rem 0; }
figcaption p { margin: .2rem 0; }
p, li { max-width: 46rem; }
.warning { font-weight: 600; }
.question { margin: 2rem 0 -.8rem; font-weight: 600; }
nav ol { padding-left: 1.4rem; }
a { color: inherit; }
img { display: block; max-width: 100%; height: auto; background: #fff;
      border: 1px solid var(--line); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
        overflow-wrap: normal; }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
         vertical-align: bottom; }
td + td { white-space: nowrap; }
th:first-child, td:first-child { min-width: 8.5rem; }
.text { text-align: left; }
tbody tr:nth-child(even) { background: var(--band); }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
"""
)


def write(run_dir: Path, titles: Sequence[str] = ()) -> Path:
    """Write report.html of a run from its results.json, figures/ and executed notebooks; returns
    its path.

    titles: C names for the columns of IoU. Figures are `<two digits of the notebook>_<slug>.png`,
    each with its caption in a .txt of the same name; the caption of a table names the protocol.
    """
    path, file = run_dir / "report.html", run_dir / "results.json"
    record = files.read_json(file, {}) if file.is_file() else {}
    run = ""
    scores: list[Block] = [Paragraph("The notebooks of this run wrote no scores.")]
    if record:
        said = "Preset {preset}, seed {seed}, device {device}, protolib {protolib}."
        run = said.format_map(record)
        scores = [results.table(record, titles, oracle) for oracle in (False, True)]
    origin = f'<p class="from">{escape(run)}</p>\n'
    body = [
        written([Heading("Scores on the test split"), *scores]),
        *_figures(run_dir),
        written([Heading("Time and memory"), _cost(record)]),
    ]
    title = escape(f"protolib on {record.get('dataset', run_dir.name)}")
    files.write_text(
        path, PAGE.substitute(title=title, body=origin + with_contents("\n".join(body)))
    )
    return path


def ledger(found: Sequence[Mapping], figures: Mapping[str, tuple[bytes, str]] | None = None) -> str:
    """The ledger as one page: what report.text says, with figures under the tables that they belong
    to.

    found: as ledger.read returns them; figures: {name of the table, "figure3" say: (bytes of a PNG,
    caption)}. Raises ValueError for a figure of no table.
    """
    sections, figures = report.sections(found), figures or {}
    head = sections.pop("head")
    if unknown := [name for name in figures if name not in sections]:
        raise ValueError(f"page: figure of {unknown[0]!r}; expected one of {', '.join(sections)}")
    body = [written(head["text"])]
    for name, parts in sections.items():
        body.append(written(chain.from_iterable(parts.values())))
        if name in figures:
            body.append(_figure(*figures[name]))
    return PAGE.substitute(title=escape(report.TITLE), body=with_contents("\n".join(body)))


def with_contents(body: str) -> str:
    """A page's body whose sections can be linked to, after a list of such links."""
    heads = re.findall("<h2>(.*?)</h2>", body)
    for n, head in enumerate(heads, start=1):
        body = body.replace(f"<h2>{head}</h2>", f'<h2 id="part-{n}">{head}</h2>', 1)
    links = "\n".join(
        f'<li><a href="#part-{n}">{head}</a></li>' for n, head in enumerate(heads, start=1)
    )
    return f'<nav aria-label="contents"><ol>\n{links}\n</ol></nav>\n{body}'


def written(some: Iterable[Block]) -> str:
    """Blocks as HTML."""
    return "\n".join(map(_block, some))


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, warning):
            kind = " class=warning" if warning else ""
            return f"<p{kind}>{escape('WARNING: ' * warning + text)}</p>"
        case Items(texts):
            items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
            return f"<ul>\n{items}</ul>"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    kinds = ["" if right else ' class="text"' for right in blocks.numeric(table)]
    caption = "".join(f"<p>{escape(text)}</p>" for text in table.caption)
    rows = "\n".join(_row(row, "td", kinds) for row in table.rows)
    return (
        f'<figure><figcaption>{caption}</figcaption>\n<div class="wide" tabindex="0"><table>\n'
        f"<thead>{_row(table.heads, 'th', kinds)}</thead>\n"
        f"<tbody>{rows}</tbody>\n</table></div></figure>"
    )


def _row(texts: Sequence[str], tag: str, kinds: Sequence[str]) -> str:
    marked = (f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(texts, kinds))
    return f"<tr>{''.join(marked)}</tr>"


def _figures(run_dir: Path) -> Iterator[str]:
    """One section per notebook that left figures, in order; in it the figures as the notebook has
    them, each after the question that it answers."""
    pictures = sorted((run_dir / "figures").glob("[0-9][0-9]_*.png"))
    for number, group in groupby(pictures, key=lambda picture: picture.name[:2]):
        notebook = next(iter((run_dir / "notebooks").glob(f"{number}_*.ipynb")), None)
        cells = _cells(notebook)
        name = notebook.stem if notebook else f"notebook {number}"
        yield f'<h2>{escape(_heading(cells) or name)}</h2>\n<p class="from">{escape(name)}</p>'
        asked = ""
        for picture in sorted(group, key=lambda picture: _place(picture.stem, cells)):
            note = picture.with_suffix(".txt")
            caption = (
                note.read_text("utf-8").strip()
                if note.is_file()
                else picture.stem[3:].replace("_", " ")
            )
            question = _question(cells[: _place(picture.stem, cells)])
            if question and question != asked:
                yield f'<p class="question">{escape(question)}</p>'
            asked = question
            yield _figure(picture.read_bytes(), caption)


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(_smaller(png)).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _smaller(png: bytes) -> bytes:
    """A picture in 256 colours of its own, a third of the bytes; itself where that saves none."""
    from PIL import Image  # here, so that the ledger need not wait for it

    out = io.BytesIO()
    try:
        drawn = Image.open(io.BytesIO(png)).convert("RGB")
    except OSError:  # no picture: the page shows what is there
        return png
    drawn.quantize(256, dither=Image.Dither.NONE).save(out, format="png")
    return min(png, out.getvalue(), key=len)


def _cells(notebook: Path | None) -> list:
    import nbformat  # here, so that the ledger's page need not wait for it

    return nbformat.read(notebook, as_version=4).cells if notebook else []


def _heading(cells: Sequence) -> str:
    """A notebook's own first heading, without Markdown's marks."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, flags=re.MULTILINE)
    return re.sub(r"[*`]", "", found[1]).strip() if found else ""


def _place(name: str, cells: Sequence) -> int:
    """The cell that draws a figure, by the name that it gives it: "04_masks", or the beginning of
    it, f"04_band_{method}"; the end where none does."""
    for n, cell in enumerate(cells):
        if cell.cell_type == "code":
            begun = re.findall(r"""f["'](\d\d_\w+)\{""", cell.source)
            if f'"{name}"' in cell.source or any(name.startswith(start) for start in begun):
                return n
    return len(cells)


def _question(cells: Sequence) -> str:
    """The question with which the text before a cell ends, without Markdown's marks; "" where the
    last text asks none."""
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    found = re.search(r"\*\*Question[:.]\*\*((?:.+\n?)+)", texts[-1]) if texts else None
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", found[1]) if found else ""
    words = " ".join(re.sub(r"[*`$\\]", "", plain).split())
    return words[:1].upper() + words[1:]


def _cost(record: Mapping) -> Table:
    """Seconds per notebook, the peak memory in the caption."""
    seconds, peak = record.get("seconds", {}), record.get("peak_rss_mb")
    caption = "Seconds per notebook on this machine."
    if peak:
        caption += f" Peak memory of one process: {peak:.0f} MB."
    rows = [*seconds.items(), ("all", sum(seconds.values()))]
    return Table(["notebook", "seconds"], [[name, f"{s:.1f}"] for name, s in rows], [caption])
