"""Check a data folder file by file, and put what is wrong aside; nothing is deleted."""

import os
from collections.abc import Mapping
from pathlib import Path

from protolib.data import checks, specs
from protolib.data.checks import ASIDE, Report


def verify(
    name: str,
    folder: str | Path,
    fix: bool = False,
    counts: Mapping[str, int] | None = None,
    workers: int | None = None,
) -> Report:
    """What checks.check finds in a folder, the same that stands before every run.

    fix: move the files of every defect that has some into quarantine/, under the same names; none
    is deleted, and slides that splits share stay: whose they are is a choice. name: as for spec_of;
    counts, workers: as for checks.check. Raises ValueError for an unknown name.
    """
    report = checks.check(specs.spec_of(name, folder), folder, counts, workers)
    if fix:
        _quarantine(report)
    return report


def _quarantine(report: Report) -> None:
    """Move the files of all defects into quarantine/, below it as they stood below the folder."""
    for path in dict.fromkeys(path for row in report.rows for path in row.files):
        target = first = report.folder / ASIDE / path.relative_to(report.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        n = 1
        while os.path.lexists(target):  # an earlier repair put a file of this name there
            n += 1
            target = first.with_name(f"{first.name}.{n}")
        path.rename(target)
        report.moved.append(path)
