"""The notebooks as they are committed, the glossary and the docs as pages that need no server and
no network. Nothing is executed."""

import base64
import io
import posixpath
import re
import shutil
from functools import cache
from html import escape, unescape
from pathlib import Path
from string import Template

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from protolib import files
from protolib.study.html import HEAD
from protolib.teach import heads

PAGE = Template(
    HEAD
    + """\
<link rel="stylesheet" href="${up}site.css">
</head>
<body>
<nav aria-label="pages">
$nav
</nav>
<main>
$body
</main>
</body>
</html>
"""
)

STYLE = """
* { box-sizing: border-box; }
body { margin: 0; color: #1b1f24; background: #fff; font: 1rem/1.55 system-ui, sans-serif; }
nav { padding: 1rem; background: #f5f7f9; border-bottom: 1px solid #d5dae0; }
nav a { display: inline-block; margin-right: .9rem; }
nav a:first-child { font-weight: 700; }
nav a[aria-current] { color: #1b1f24; font-weight: 600; text-decoration: none; }
main { padding: 1rem 1rem 4rem; max-width: 62rem; margin: 0 auto; overflow-wrap: anywhere; }
@media (min-width: 80rem) {
  nav { position: fixed; inset: 0 auto 0 0; width: 15rem; overflow-y: auto; border: 0;
        border-right: 1px solid #d5dae0; }
  nav a { display: block; margin: 0 0 .35rem; }
  main { margin-left: 16rem; }
}
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.3rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0; }
h3 + p { margin-top: .2rem; }
a { color: #0a58a8; }
p, li { max-width: 46rem; }
img { max-width: 100%; height: auto; }
img.math { display: inline; max-width: none; }
p.math { text-align: center; max-width: none; overflow-x: auto; }
pre { overflow-x: auto; font: .85rem/1.45 ui-monospace, monospace; margin: .6rem 0; }
code { font: .88em ui-monospace, monospace; }
pre code { font-size: 1em; }
.highlight { background: #f8f9fb; border: 1px solid #d5dae0; border-radius: 6px;
             padding: .1rem .8rem; margin: .8rem 0; }
summary { color: #59626d; font-size: .9rem; cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d5dae0; text-align: left;
         vertical-align: top; }
.dataframe td { text-align: right; white-space: nowrap; }
"""

# a cell's parts; a figure takes its words from the metadata that viz.describe left
CELLS = """
{%- extends 'basic/index.html.j2' -%}
{%- block in_prompt -%}{%- endblock -%}
{%- block output_prompt -%}{%- endblock -%}
{%- block markdowncell -%}{{ cell.source | page_markdown }}{%- endblock -%}
{%- block input -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
<details><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- else -%}{{ cell.source | highlight_code(metadata=cell.metadata) }}{%- endif -%}
{%- endblock -%}
{%- block stream -%}<pre tabindex="0">{{ output.text | ansi2html }}</pre>{%- endblock -%}
{%- block data_text -%}<pre tabindex="0">{{ output.data['text/plain'] | ansi2html }}</pre>
{%- endblock -%}
{%- block data_markdown -%}{{ output.data['text/markdown'] | page_markdown }}{%- endblock -%}
{%- block data_html -%}{{ output.data['text/html'] | page_table }}{%- endblock -%}
{%- block data_png -%}{{ output | page_image('image/png') }}{%- endblock -%}
{%- block data_jpg -%}{{ output | page_image('image/jpeg') }}{%- endblock -%}
"""


def write(kit: Path, out: Path) -> list[Path]:
    """Write the site of a kit's folder to `out`, which is made anew; returns its pages.

    A link to a file that is no page leads to the repository, or is plain words until pyproject.toml
    says where that is. Raises ValueError where `out` holds what no site is.
    """
    if out.exists() and any(out.iterdir()) and not (out / "site.css").is_file():
        raise ValueError(f"{out} is not empty and no site; give a new folder")
    shutil.rmtree(out, ignore_errors=True)
    pages = [
        *(kit / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((kit / "notebooks").glob("*.ipynb")),
        *sorted((kit / "docs").glob("*.md")),
    ]
    pages = [page.relative_to(kit) for page in pages if page.exists()]
    files.write_text(out / "site.css", css())
    written, address = [], heads.published(kit)
    for page in pages:
        text = (kit / page).read_text("utf-8")
        if page.suffix == ".ipynb":
            body = notebook(heads.badged(nbformat.reads(text, as_version=4), address))
        else:
            body = markdown(text)
        body, pictures = linked(body, page, pages, address)
        for picture in pictures:
            (out / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kit / picture, out / picture)
        up = "../" * (len(page.parts) - 1)
        home = f'<a href="{up}index.html">protolib</a>'
        nav = "\n".join([home, *(_entry(other, page, up) for other in pages[3:])])
        written.append(out / place(page))
        content = PAGE.substitute(title=title(body, page), up=up, nav=nav, body=body)
        files.write_text(written[-1], content)
    return written


def css() -> str:
    """The style of all pages, site.css."""
    return HtmlFormatter(style="xcode").get_style_defs(".highlight") + STYLE


def title(body: str, page: Path) -> str:
    """The first heading of a page's HTML, or the name of its file."""
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", body, re.DOTALL)
    return re.sub(r"<[^>]*>", "", heading[1]) if heading else page.stem


def place(page: Path) -> str:
    """Where a page of the kit stands in the site: README is its index."""
    return "index.html" if page.as_posix() == "README.md" else page.with_suffix(".html").as_posix()


def _entry(other: Path, page: Path, up: str) -> str:
    here = ' aria-current="page"' if other == page else ""
    words = other.stem.replace("_", " ")
    return f'<a href="{up}{place(other)}"{here}>{escape(words)}</a>'


def linked(body: str, page: Path, pages: list[Path], address: str = "") -> tuple[str, set[Path]]:
    """A page's HTML whose links lead to pages of the site, and the pictures that it shows.

    A link to any other file of the kit leads to the repository, or is taken away.
    """
    pictures = set()

    def changed(found: re.Match) -> str:
        before, target, after, words = found.groups()
        if (path := beside(unescape(target), page)) is None:
            return found[0]
        if path in pages:
            name = posixpath.relpath(place(path), page.parent.as_posix())
            target = name + "".join(target.partition("#")[1:])
        elif not (target := away(path, address)):
            return words
        return f'<a{before}href="{target}"{after}>{words}</a>'

    def kept(found: re.Match) -> str:
        if not re.match(r"\w+:|//", found[1]):
            pictures.add(Path(posixpath.normpath((page.parent / found[1]).as_posix())))
        return found[0]

    body = re.sub(r'<a([^>]*?)href="([^"]*)"([^>]*)>(.*?)</a>', changed, body, flags=re.DOTALL)
    re.sub(r'<img[^>]*src="([^"]*)"', kept, body)
    return body, pictures


def beside(target: str, page: Path) -> Path | None:
    """The file of the kit to which a link of a page leads; None for the world, or a heading of the
    page itself."""
    if re.match(r"\w+:|#|//", target):
        return None
    return Path(posixpath.normpath((page.parent / target.partition("#")[0]).as_posix()))


def away(path: Path, address: str) -> str:
    """Where a file of the kit stands in the repository; "" without an address."""
    return f"{address}/blob/main/{path.as_posix()}" if address else ""


def markdown(text: str) -> str:
    """Markdown with mathematics as HTML, headings with the anchors that code hosts give them."""
    return _wide(MarkdownWithMath(renderer=_Renderer(escape=False)).render(text))


def notebook(book: NotebookNode, code: bool = True) -> str:
    """A notebook with its outputs as HTML, with or without its code."""
    return _exporter(code).from_notebook_node(book)[0]


@cache
def _exporter(code: bool) -> HTMLExporter:
    exporter = HTMLExporter(
        template_name="basic", template_file="page", extra_loaders=[DictLoader({"page": CELLS})]
    )
    exporter.exclude_input, exporter.exclude_output_prompt = not code, True
    exporter.register_filter("page_markdown", markdown)
    exporter.register_filter("page_table", _table)
    exporter.register_filter("page_image", _image)
    return exporter


class _Renderer(IPythonRenderer):
    def heading(self, text: str, level: int, **attrs) -> str:
        return f'<h{level} id="{anchor(text)}">{text}</h{level}>\n'

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        # in a line of its own a fraction has room for letters of full size
        drawn = formula(body.replace(r"\frac", r"\dfrac"))
        return f'<p class="math">{drawn}</p>'


def anchor(heading: str) -> str:
    """The anchor of a heading: "Dice is not 2 mIoU" -> "dice-is-not-2-miou"."""
    plain = unescape(re.sub(r"<[^>]*>", "", heading))
    return re.sub(r"[^\w -]", "", plain).strip().lower().replace(" ", "-")


@cache
def formula(body: str) -> str:
    """A formula as a picture, drawn by matplotlib, with its source as the text for who cannot see
    it: no page waits for a script from elsewhere."""
    from matplotlib import rc_context
    from matplotlib.mathtext import math_to_image

    drawn, source = io.BytesIO(), " ".join(body.split())
    with rc_context({"mathtext.fontset": "cm", "svg.fonttype": "path", "svg.hashsalt": "protolib"}):
        math_to_image(f"${source}$", drawn, dpi=72, format="svg")
        depth = math_to_image(f"${source}$", io.BytesIO(), dpi=72, format="png")
    svg = drawn.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    width, height = (
        float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) for side in ("width", "height")
    )
    look = f"width:{width / 10:.2f}em;height:{height / 10:.2f}em;vertical-align:{-depth / 10:.2f}em"
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<img class="math" alt="{escape(source)}" style="{look}" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def _image(output, kind: str) -> str:
    alt = output.metadata.get(kind, {}).get("alt") or output.metadata.get("alt") or "figure"
    return f'<p><img alt="{escape(alt)}" src="data:{kind};base64,{output.data[kind].strip()}"></p>'


def _table(html: str) -> str:
    html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)  # the site's own counts
    return _wide(html.replace(' border="1"', "").replace(' style="text-align: right;"', ""))


def _wide(html: str) -> str:
    """A table scrolls in a box of its own, by keyboard too, and never widens the page."""
    html = html.replace("<table", '<div class="wide" tabindex="0"><table')
    return html.replace("</table>", "</table></div>")
