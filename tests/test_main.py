"""The command line's report of the ledger: text, JSON and page, and what is loaded for it."""

import json
import re
import subprocess
import sys

import fake_results
import pytest

from protolib import blocks
from protolib.__main__ import main, parser
from protolib.study import figures, html, ledger
from protolib.study import report as words


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one result file, entered."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    fake_results.write(tmp_path / "results", fake_results.result())
    return tmp_path


def report(*arguments: str) -> int:
    return main(["report", *arguments, "--notebooks", "notebooks"])


def test_report_prints_the_ledger(project, capsys):
    assert report() == 0
    assert capsys.readouterr().out == words.text(ledger.read(project / "results"))


def test_json_is_the_rows(project, capsys):
    assert report("--json") == 0
    out = capsys.readouterr().out
    assert json.loads(out) == ledger.rows(ledger.read(project / "results")) and "NaN" not in out


def test_without_results_the_paper_is_shown(project, capsys):
    (project / "results" / "mosaic-lean.json").unlink()
    assert report() == 0
    assert "No results yet: `python -m protolib ablate" in capsys.readouterr().out


def test_a_malformed_file_is_refused(project, capsys):
    (project / "results" / "a.json").write_text("{}")
    assert report() == 2
    assert capsys.readouterr().err.startswith("protolib: a.json: missing label, official")


def test_page_and_json_are_of_the_ledger_not_of_a_run(project, capsys):
    assert report("latest", "--json") == 2
    assert capsys.readouterr().err == (
        "protolib: --html and --json show the paper's tables, not the run latest; leave one away\n"
    )
    assert report("latest") == 2
    assert capsys.readouterr().err.startswith("protolib: no run 'latest' with a run.json in runs; ")


def test_page_says_what_the_text_says_and_needs_nothing_else(project, capsys):
    assert report("--html", "out/ledger.html") == 0
    assert capsys.readouterr().out == "ledger: out/ledger.html\n"
    text = (project / "out" / "ledger.html").read_text("utf-8")
    assert "http" not in text and "prefers-color-scheme: dark" in text
    body = re.sub(r"<img[^>]*>", "", text[text.index("<h1>") :])
    contents = re.search(r"<nav.*?</nav>", body, re.DOTALL).group()
    heads = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', body)
    assert re.findall(r'<a href="#(.*?)">(.*?)</a>', contents) == heads
    body = body.replace(contents, "")
    shown = (
        re.sub(r"<[^>]+>", " ", body)
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&#x27;", "'")
    )
    sections = words.sections(ledger.read(project / "results")).values()
    every = [block for section in sections for part in section.values() for block in part]
    wanted = re.sub(r"^[#-] |^## |^\|[-:|]+\|$|\|", " ", blocks.markdown(every), flags=re.M)
    assert shown.replace(figures.CAPTION, "").split() == wanted.split()


def test_page_puts_each_figure_under_its_table():
    made = html.ledger([], {"table4": (b"png", "Four <curves>.")})
    order = [
        made.index(words)
        for words in (
            ">Table 4: Sub-classes per class (stage 1)</h2>",
            'alt="Four &lt;curves&gt;."',
            "cG5n",
            '<h2 id="part-5">',
        )
    ]
    assert order == sorted(order)
    with pytest.raises(ValueError, match="figure of 'table9'; expected one of table1"):
        html.ledger([], {"table9": (b"", "")})


def test_page_keeps_empty_cells_and_sets_words_to_the_left():
    made = html.ledger([])
    row = '<tr><td class="text">TransWS</td><td>40.25</td><td></td><td></td><td>57.39</td></tr>'
    assert row in made
    assert (
        '<td class="text">stage 1</td><td class="text">bcss-wsss</td><td>66.74</td><td></td>'
        in made
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--seed", "-1"], "argument --seed: '-1' is no seed; give 0, 1, 2, ..."),
        (["run", "--seed", "1.5"], "argument --seed: '1.5' is no seed; give 0, 1, 2, ..."),
        (["ablate", "all", "--seeds", "0,-1"], "argument --seeds: '-1' is no seed; give 0, 1, "),
        (["ablate", "all", "--seeds", "0,"], "argument --seeds: '' is no seed; give 0, 1, 2, ..."),
        (["ablate", "all", "--jobs", "1.5"], "argument --jobs: invalid int value: '1.5'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(project, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--notebooks", "notebooks"])
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1] and out == "" and not (project / "runs").exists()


def test_a_seed_is_taken_once():
    assert parser().parse_args(["ablate", "all", "--seeds", "2,0,2"]).seeds == (2, 0)


def test_no_report_loads_torch_and_only_the_page_loads_matplotlib(project):
    code = """if True:
        import sys
        from protolib.__main__ import main
        for option in ([], ["--json"], ["--html", "ledger.html"]):
            main(["report", "--notebooks", "notebooks", *option])
            slow = ("torch", "papermill", "scipy.stats", "matplotlib")
            print([name for name in slow if name in sys.modules], file=sys.stderr)
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n[]\n['matplotlib']\n"
