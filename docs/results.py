"""Fill the tables of docs/results.md from results/: `.venv/bin/python docs/results.py`.

A table stands between <!-- FILE TABLE --> and <!-- end -->, one of differences between
<!-- FILE TABLE differences --> and <!-- end -->, that of when matching helps between
<!-- FILE when cases --> and <!-- end -->; what stands between is written anew.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from protolib import blocks, files
from protolib.metrics import SCORES
from protolib.study import compare, figures, ledger, paper, report

HERE = Path(__file__).resolve().parent
PLACE = re.compile(r"(<!-- (\S+) (\w+)( differences| cases)? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Mapping[str, Mapping]) -> str:
    """A page with every table between its marks written anew; results: as known gives them. Raises
    ValueError for a mark that names none of them."""

    def table(found: re.Match) -> str:
        begin, file, name, kind, end = found.groups()
        if file not in results:
            raise ValueError(f"docs/results.md asks for {file}, which is not in results/")
        make = {" differences": compared, " cases": helped}.get(kind, scored)
        return f"{begin}{blocks.markdown([make(paper.TABLES[name], results[file])])}\n{end}"

    return PLACE.sub(table, text)


def scored(table: paper.Table, result: Mapping) -> blocks.Table:
    """Each row that was run: its seeds, then mean and standard deviation over them, in percent, of
    the scores and the IoU of each class; predicted image labels."""
    rows = []
    for row in ledger.row_names(table, result):
        seeds = [seed.scores["predicted"] for seed in ledger.seeds_of(result, table.name, row)]
        if not seeds:
            continue
        of = np.array([[*(seed[score] for score in SCORES), *seed["iou"]] for seed in seeds])
        means = [f"{100 * mean:.1f}" for mean in of.mean(0)]
        if len(of) > 1:
            means = [f"{m} ± {100 * s:.1f}" for m, s in zip(means, of.std(0, ddof=1))]
        rows.append([row, str(len(of)), *means])
    heads = [*SCORES.values(), *(f"IoU {name}" for name in result["classes"])]
    return blocks.Table(["row", "seeds", *(f"{head} (%)" for head in heads)], rows, _made(result))


def compared(table: paper.Table, result: Mapping) -> blocks.Table:
    """Each question of ours to the table: the difference in mIoU points, its 95 % intervals over
    seeds (paired) and over slides (bootstrap), what they decide, and the difference where the image
    labels are given."""

    def span(ends: tuple[float, float]) -> str:
        return "{:+.1f} to {:+.1f}".format(*ends)

    def over_seeds(found: compare.Paired) -> str:
        return span((found.low, found.high)) if found.n > 1 else "one seed"

    rows = []
    for finding in report.findings(table, result):
        if not (finding.claim.ours and finding.ours):
            continue
        rows.append(
            [
                f"{finding.rows[0]}, against: {finding.rows[1]}",
                f"{finding.ours.difference:+.1f}",
                over_seeds(finding.ours),
                span(finding.slides) if finding.slides else "–",
                finding.verdict,
                f"{finding.given.difference:+.1f}" if finding.given else "–",
                over_seeds(finding.given) if finding.given else "–",
            ]
        )
    heads = ["compared", "difference (points)", "over seeds", "over slides", ""]
    heads += ["labels given (points)", "over seeds"]
    return blocks.Table(heads, rows, _made(result))


def helped(table: paper.Table, result: Mapping) -> blocks.Table:
    """Each kind of data of table `when`: what the teacher is ahead of the student on val, and what
    matching gains on test, in points of mIoU, mean over seeds."""
    rows = [
        [case.data, str(len(case.lead)), f"{np.mean(case.lead):+.1f}", f"{np.mean(case.gain):+.1f}"]
        for case in figures.cases(result)
    ]
    heads = ["data", "seeds", "teacher ahead on val (points)", "gain on test (points)"]
    return blocks.Table(heads, rows, _made(result))


def _made(result: Mapping) -> tuple[str, ...]:
    """On what the numbers of a file stand."""
    seeds = ", ".join(map(str, sorted({run["seed"] for run in result["runs"]})))
    marks = {
        f"{run['rechecked']} runs were made again" for run in result["runs"] if "rechecked" in run
    }
    return (
        f"{ledger.name(result)}, preset {result['preset']}, seeds {seeds}.",
        "Predicted image labels, ignore pixels dropped.",
        *(f"Made by commit {result[name]}." for name in ("made_by",) if name in result),
        *(f"{mark} after a change of code, and are equal." for mark in sorted(marks)),
    )


def known(folder: Path) -> dict[str, dict]:
    """Every result file of a folder, by the name that the page calls it."""
    return {f"{result['label']}-{result['preset']}": result for result in ledger.read(folder)}


if __name__ == "__main__":
    page = HERE / "results.md"
    files.write_text(page, filled(page.read_text("utf-8"), known(HERE.parent / "results")))
