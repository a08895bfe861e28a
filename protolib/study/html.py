"""Pages with tables and figures, readable without network, on a phone and in the dark: a run's, and
the ledger's."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from protolib import files, results
from protolib.study import report

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --line: #d5dae0; --page: #fff; --band: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3adb8; --line: #3a424c; --page: #14181d; --band: #1c2228; }
}
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
       font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); }
.from { color: var(--soft); font-size: .9rem; margin: .2rem 0 0; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin: .5rem 0; }
figcaption p { margin: .2rem 0; }
p, li { max-width: 46rem; }
.warning { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
      border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom; }
td { white-space: nowrap; }
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
""")


def write(run_dir: Path, titles: Sequence[str] = ()) -> Path:
    """Write report.html of a run from its results.json, figures/ and executed notebooks; returns
    its path.

    titles: C names for the columns of IoU. Figures are `<two digits of the notebook>_<slug>.png`,
    each with its caption in a .txt of the same name; the caption of a table names the protocol.
    """
    path, file = run_dir / "report.html", run_dir / "results.json"
    record = files.read_json(file) if file.is_file() else {}
    run = (
        "Preset {preset}, seed {seed}, device {device}, protolib {protolib}.".format_map(record)
        if record
        else ""
    )
    scores = (
        [_table(results.table(record, titles, oracle)) for oracle in (False, True)]
        if record
        else ["<p>The notebooks of this run wrote no scores.</p>"]
    )
    body = [
        f'<p class="from">{escape(run)}</p>',
        "<h2>Scores on the test split</h2>",
        *scores,
        *_figures(run_dir),
        "<h2>Time and memory</h2>",
        _table(_cost(record)),
    ]
    title = escape(f"protolib on {record.get('dataset', run_dir.name)}")
    files.write_text(path, PAGE.substitute(title=title, body="\n".join(body)))
    return path


def ledger(found: Sequence[Mapping], figures: Mapping[str, tuple[bytes, str]] | None = None) -> str:
    """The ledger as one page: what account.text says, with figures under the tables that they
    belong to.

    found: as ledger.read returns them; figures: {name of the table, "figure3" say: (bytes of a PNG,
    caption)}. Raises ValueError for a figure of no table.
    """
    parts, figures = report.sections(found), figures or {}
    title, head = parts.pop("head").removeprefix("# ").split("\n\n", 1)
    if unknown := [name for name in figures if name not in parts]:
        raise ValueError(f"page: figure of {unknown[0]!r}; expected one of {', '.join(parts)}")
    body = [_html(head)]
    for name, part in parts.items():
        body += [_html(part), *([_figure(*figures[name])] if name in figures else [])]
    return PAGE.substitute(title=escape(title), body="\n".join(body))


def _html(markdown: str) -> str:
    """HTML of the Markdown that report.py writes; the paragraph before a table becomes its
    caption."""
    made, before = [], ""
    for block in [*markdown.split("\n\n"), ""]:
        if block.startswith("|"):
            made.append(_table(f"{before}\n{block}"))
            before = ""
            continue
        if before:
            made.append(f"<p{' class=warning' * before.startswith('WARNING')}>{escape(before)}</p>")
        before = ""
        if block.startswith("## "):
            made.append(f"<h2>{escape(block[3:])}</h2>")
        elif block.startswith("- "):
            items = "".join(f"<li>{escape(line[2:])}</li>\n" for line in block.splitlines())
            made.append(f"<ul>\n{items}</ul>")
        else:
            before = block
    return "\n".join(made)


def _figures(run_dir: Path) -> Iterator[str]:
    """One section per notebook that left figures, in order."""
    pictures = sorted((run_dir / "figures").glob("[0-9][0-9]_*.png"))
    for number, group in groupby(pictures, key=lambda picture: picture.name[:2]):
        notebook = next(iter((run_dir / "notebooks").glob(f"{number}_*.ipynb")), None)
        name = notebook.stem if notebook else f"notebook {number}"
        yield f'<h2>{escape(_heading(notebook) or name)}</h2>\n<p class="from">{escape(name)}</p>'
        for picture in group:
            note = picture.with_suffix(".txt")
            caption = (
                note.read_text("utf-8").strip()
                if note.is_file()
                else picture.stem[3:].replace("_", " ")
            )
            yield _figure(picture.read_bytes(), caption)


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _heading(notebook: Path | None) -> str:
    """The notebook's own first heading, without Markdown's marks."""
    import nbformat  # here, so that the ledger's page need not wait for it

    cells = nbformat.read(notebook, as_version=4).cells if notebook else []
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, flags=re.MULTILINE)
    return re.sub(r"[*`]", "", found[1]).strip() if found else ""


def _cost(record: Mapping) -> str:
    """Seconds per notebook as a Markdown table, the peak memory in its caption."""
    seconds, peak = record.get("seconds", {}), record.get("peak_rss_mb")
    caption = "Seconds per notebook on this machine." + (
        f" Peak memory of one process: {peak:.0f} MB." if peak else ""
    )
    rows = [*seconds.items(), ("all", sum(seconds.values()))]
    return "\n".join(
        [
            caption,
            "| notebook | seconds |",
            "|---|---:|",
            *(f"| {name} | {s:.1f} |" for name, s in rows),
        ]
    )


def _table(markdown: str) -> str:
    """HTML of one Markdown table; the lines before it become its caption, so page and terminal say
    the same."""
    lines = [line.strip() for line in markdown.splitlines() if line.strip()]
    head, rule, *body = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")
    ]
    kinds = [
        "" if mark.endswith(":") else ' class="text"' for mark in rule
    ]  # what is not set right is no number
    caption = "".join(f"<p>{escape(line)}</p>" for line in lines if not line.startswith("|"))
    rows = "\n".join(_row(cells, "td", kinds) for cells in body)
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="wide"><table>\n'
        f"<thead>{_row(head, 'th', kinds)}</thead>\n<tbody>{rows}</tbody>\n</table></div></figure>"
    )


def _row(cells: Sequence[str], tag: str, kinds: Sequence[str]) -> str:
    return (
        "<tr>"
        + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds))
        + "</tr>"
    )
