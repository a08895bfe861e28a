"""A reader's own copies of the notebooks, JupyterLab on them, and memory given back at the end of
one."""

import ctypes
import gc
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType

from protolib import files

# JupyterLab as a class needs it: glossary and docs are shown, not edited; nothing is asked of the
# network, and no question about that stands over the first notebook
SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def lay_out(notebooks: Path, desk: Path, reset: str = "") -> list[Path]:
    """Copy the notebooks that are missing in `desk`, made if need be; returns the new copies.

    notebooks: folder with *.ipynb. reset: the number or name of one that is copied anew, "03"; the
    old copy is kept in desk/old with the time in its name. Pages and results that the notebooks
    read are copied where they do not stand beside `desk`. Raises ValueError where no notebook has
    that name, or more than one.
    """
    books = sorted(notebooks.glob("*.ipynb"))
    if reset:
        found = [book for book in books if book.stem.startswith(reset)]
        if len(found) != 1:
            names = ", ".join(book.stem for book in books)
            raise ValueError(f"{reset!r} names {len(found)} notebooks; expected one of {names}")
        old = desk / found[0].name
        if old.exists():
            kept = desk / "old" / f"{old.stem}-{datetime.now():%Y%m%d-%H%M%S-%f}.ipynb"
            kept.parent.mkdir(exist_ok=True)
            os.replace(old, kept)
    new = []
    for book in books:
        if not (desk / book.name).exists():
            files.write_text(desk / book.name, book.read_text("utf-8"))
            new.append(desk / book.name)
    for name in ("docs/*.md", "results/*.json"):
        for page in notebooks.parent.glob(name):
            beside = desk.parent / page.relative_to(notebooks.parent)
            if not beside.exists():
                files.write_text(beside, page.read_text("utf-8"))
    return new


def command(desk: Path, reset: str = "", more: tuple[str, ...] = ()) -> list[str]:
    """The command that starts JupyterLab on the copies in `desk`, at the first notebook or
    the one that was reset; more: its own options, which count more than ours."""
    files.write_text(desk / ".lab" / "overrides.json", json.dumps(SETTINGS, indent=1))
    first = next(iter(sorted(desk.glob(f"{reset or '00'}*.ipynb"))), None)
    return [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={desk.parent}",
        f"--LabApp.app_settings_dir={desk / '.lab'}",
        f"--LabApp.default_url=/lab/tree/{desk.name}" + (f"/{first.name}" if first else ""),
        *more,
    ]


def start(notebooks: Path, desk: Path, reset: str = "", more: tuple[str, ...] = ()) -> int:
    """Lay out the desk and stay with JupyterLab until it ends; returns its exit status."""
    new = lay_out(notebooks, desk, reset)
    print(f"your own copies: {desk}, {len(new)} of them new; runs/ beside it holds what they make")
    print("start one afresh, the old one is kept: make lab RESET=03", flush=True)
    try:
        return subprocess.call(command(desk, reset, more))
    except KeyboardInterrupt:  # JupyterLab had it too, and has said good-bye
        return 0


def free(names: MutableMapping[str, object]) -> None:
    """Say the most memory that a notebook took, and give back what can be: a kernel that stays open
    keeps it. Notebook 00.

    names: globals() of the notebook; what its cells have bound there goes, but for modules,
    functions, classes, and what the controls of viz.play draw with.
    """
    import matplotlib.pyplot as plt  # here: who lays out a desk in a terminal needs none of these
    import psutil
    from IPython import get_ipython

    from protolib import results
    from protolib.teach import viz

    plt.close("all")
    spared = {"In", "Out"} | set().union(*(_named(draw, names) for draw in viz.PLAYED))
    for name in [name for name in names if not name.startswith("_") and name not in spared]:
        if not isinstance(names[name], ModuleType | FunctionType | MethodType | type):
            del names[name]
    if shell := get_ipython():
        shell.displayhook.flush()  # what the cells have shown is kept under _1, _2, ...
    gc.collect()
    if sys.platform == "linux":  # glibc keeps what was freed; another libc may have no such call
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", 1e6 * results.peak_rss_mb())  # the former is Windows'
    print(
        f"most memory that this notebook took: {peak / 1e9:.2f} GB; now {memory.rss / 1e9:.2f} GB"
    )
    print("to give back the rest: Kernel > Shut Down Kernel")


def _named(function: Callable, names: Mapping[str, object]) -> set[str]:
    """The names of a notebook that a function needs, and those that its own functions need."""
    found: set[str] = set()
    waiting: list = [inspect.unwrap(function)]
    while waiting:
        code = getattr(waiting.pop(), "__code__", None)
        codes = [code] if code else []
        while codes:  # what stands in a comprehension or a lambda is code of its own
            code = codes.pop()
            codes += [part for part in code.co_consts if isinstance(part, CodeType)]
            new = {name for name in code.co_names if name in names} - found
            found |= new
            # one under functools.cache is no function, but wraps one
            called = [inspect.unwrap(own) for name in new if callable(own := names[name])]
            waiting += [own for own in called if isinstance(own, FunctionType)]
    return found
