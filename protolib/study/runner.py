"""Executes the notebooks in order with papermill and keeps a record, so that a run which stopped
goes on where it was.

A run folder holds notebooks/ (the executed copies), run.json (this module's record), what the
notebooks wrote (results.json, figures/ and more) and, at the end, report.html.
"""

import ast
import difflib
import hashlib
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import FileLock, Timeout
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from protolib import __version__, blocks, caches, files, keys, presets, results
from protolib.data import checks, specs
from protolib.study import html, kernels

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHANGES = ("encoder", "backbone", "K")  # parameters of the notebooks that change the preset
DEFAULTS = {"preset": "quick", "dataset": "phantom", "data_root": "", "seed": 0, "device": "auto"}
IDENTITY = ("preset", "dataset", "data_root", "seed")  # another value of these is another run
# the messages between us and a kernel pass through local ports that other users of the machine
# could read
KERNEL = Config(KernelManager={"transport_encryption": "auto"})
RECORD = "run.json"
OPTIONS = {name: f"--{name}" for name in DEFAULTS} | {"data_root": "--data", "run_dir": "--run-dir"}


def parse(pairs: Sequence[str]) -> dict[str, Any]:
    """Values of `-p name=value`: a literal (3, 1e-4, true, null, [1, 2]) or else the text itself.

    Raises ValueError for a pair without "=" and for a name that has an option of its own.
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"-p {pair}: expected name=value, for example -p K=4")
        if name in OPTIONS:
            raise ValueError(
                f"-p {pair}: '{name}' has an option of its own: {OPTIONS[name]} {text}"
            )
        values[name] = _literal(text)
    return values


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)  # not YAML 1.1, which reads 1e-4 as text and no as false
    except (ValueError, SyntaxError):
        return text


def run(
    notebooks: Path,
    settings: Mapping[str, Any],
    run_dir: Path | None = None,
    resume: str | None = None,
) -> int:
    """Execute every notebook that is not done yet, then print the table and write report.html.

    notebooks: folder with 0*.ipynb; each gets the settings that its cell tagged `parameters`
    declares. settings: what the user chose; the rest is DEFAULTS or, with resume, what the run was
    started with. Returns the exit status: 0 done, 1 a cell failed, 130 interrupted; both leave a
    run that --resume continues. Raises ValueError, before any work, for a name, preset, data set or
    folder that cannot be.
    """
    story = _story(notebooks)
    runs = notebooks.parent / "runs"
    before = find(runs, resume) if resume else None
    old = record_of(before, settings) if before else None
    chosen: dict[str, Any] = DEFAULTS | dict(old["parameters"] if old else {}) | dict(settings)
    chosen["data_root"] = str(chosen["data_root"]) and str(files.place(chosen["data_root"]))
    spec = _check(chosen, story, before and before / "cache")
    run_dir = before or _new_folder(runs, run_dir and files.place(run_dir), chosen)
    if spec.name != "phantom":  # what was found is kept for the notebooks
        checks.guard(spec, chosen["data_root"], run_dir / "cache")
    record = {
        "protolib": __version__,
        "parameters": chosen,
        "classes": spec.classes,
        "titles": spec.titles,
        "notebooks": {
            path.stem: old["notebooks"][path.stem]
            for path in story
            if old and path.stem in old["notebooks"]
        },
        "peak_rss_mb": old["peak_rss_mb"] if old else None,
    }
    use_own_kernel()
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    with _held(run_dir):
        files.sweep(run_dir)  # what a killed run has left
        _point_latest(runs, run_dir)
        print(f"run: {short(run_dir)}, {threads} threads", flush=True)
        status = _execute_all(story, run_dir, record)
        return report(run_dir) if status == 0 else status


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the system lets go of the lock when its holder dies."""
    try:
        with FileLock(run_dir / ".running.lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"another run is going on in {short(run_dir)}: wait for it, or choose another --run-dir"
        ) from error


def report(run_dir: Path) -> int:
    """Bring times and memory into results.json, print its table and write report.html. Returns the
    exit status 0."""
    record, path = record_of(run_dir), run_dir / "results.json"
    if path.is_file():
        seconds = {name: entry["seconds"] for name, entry in record["notebooks"].items()}
        scores = results.record(
            **files.read_json(path, {}) | {"seconds": seconds, "peak_rss_mb": record["peak_rss_mb"]}
        )
        files.write_json(path, scores)
        table = results.table(scores, record["classes"])
        print("", blocks.markdown([table], width=blocks.TERMINAL), sep="\n")
    else:
        print("no results.json: the notebooks of this run wrote no scores")
    print(f"report: {short(html.write(run_dir, record['titles']))}")
    return 0


def find(runs: Path, name: str) -> Path:
    """The folder of a run: a path, a name under runs/, or "latest". Raises ValueError where there
    is none."""
    pointer = runs / "latest.txt"
    if name == "latest" and not (runs / name).is_dir() and pointer.is_file():
        name = pointer.read_text("utf-8").strip()
    for folder in ([] if name == "latest" else [Path(name)]) + [runs / name]:
        if (folder / RECORD).is_file():
            return folder.resolve()
    raise ValueError(
        f"no run '{name}' with a run.json in {short(runs)}; start one with: python -m protolib run"
    )


def _story(notebooks: Path) -> dict[Path, dict[str, Any]]:
    """The notebooks in order, each with the names and defaults in its cell tagged `parameters`."""
    story: dict[Path, dict[str, Any]] = {}
    for path in sorted(notebooks.glob("0*.ipynb")):
        try:
            found = papermill.inspect_notebook(braced(path))
            story[path] = {name: _literal(of["default"]) for name, of in found.items()}
        except (
            Exception
        ) as error:  # papermill passes on whatever nbformat, json or a missing kernelspec raise
            raise ValueError(
                f"{path.name} is no notebook that papermill can read: {error!r}"
            ) from error
    if not story:
        raise ValueError(f"no notebook 0*.ipynb in {short(notebooks)}; pass --notebooks DIR")
    return story


def _check(
    settings: Mapping[str, Any], story: Mapping[Path, Mapping[str, Any]], cache: Path | None
) -> specs.DatasetSpec:
    """The spec of the data set, once preset, device, seed, parameters and every file of the data
    are known to be right. cache: of the run, where there is one already: it knows what was
    checked."""
    known = sorted({name for names in story.values() for name in names} - set(OPTIONS))
    for name in sorted(settings.keys() - set(OPTIONS) - set(known)):
        close = difflib.get_close_matches(name.lower(), [other.lower() for other in known], n=1)
        hint = next(
            (f", did you mean '{other}'?" for other in known if [other.lower()] == close), "."
        )
        raise ValueError(
            f"no notebook has a parameter '{name}'{hint} Known: {', '.join(known) or 'none'}; "
            f"with options of their own: {', '.join(OPTIONS.values())}"
        )
    changes = {name: settings[name] for name in CHANGES if settings.get(name)}
    presets.changed(presets.preset(settings["preset"]), changes)
    for defaults in story.values():
        for name in sorted(defaults.keys() & settings.keys() - {"run_dir"}):
            _check_kind(name, settings[name], defaults[name])
    _check_kind("seed", settings["seed"], 0)
    if not 0 <= settings["seed"] < 2**63:
        raise ValueError(f"--seed {settings['seed']}: give a whole number from 0 on, below 2**63")
    if settings["device"] not in ("auto", "cpu"):
        from protolib.experiment import device_of  # here: it takes torch, which takes seconds

        device_of(settings["device"])
    spec = specs.spec_of(settings["dataset"], settings["data_root"])
    if spec.name != "phantom":
        checks.guard(spec, settings["data_root"], cache)
    return spec


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than that of the notebooks: "no" is a text, and true to
    Python."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    wanted = type(default)
    fits = type(value) is wanted or wanted is float and type(value) is int
    if wanted in kinds and not (fits and (wanted is not float or math.isfinite(value))):
        option = f"{OPTIONS[name]} " if name in OPTIONS else f"-p {name}="
        hint = "; true deletes trained networks" if name == "retrain" else ""
        raise ValueError(f"{option}{value}: give {kinds[wanted]}{hint}")
    if isinstance(value, str) and name != "data_root" and not value.isprintable():
        raise ValueError(f"{name} = {value!r}: give a text without control characters")


def _data_stamp(spec: specs.DatasetSpec, settings: Mapping[str, Any]) -> str:
    """What tells that the data of a run has changed: how it is described, and its files."""
    if spec.name == "phantom":
        return keys.digest(repr(spec))
    layouts = specs.check_layout(spec, settings["data_root"])
    return keys.digest(repr(spec), {split: specs.stamp(of) for split, of in layouts.items()})


def record_of(run_dir: Path, settings: Mapping[str, Any] | None = None) -> dict:
    """run.json of a run; with settings, checked to be of the same run. Raises ValueError for a
    damaged file."""
    file = run_dir / RECORD
    lists = {"classes": list, "titles": list, "peak_rss_mb": (float, None)}
    record = files.read_json(file, {"parameters": dict, "notebooks": dict, **lists})
    kinds = {name: type(DEFAULTS[name]) for name in IDENTITY}
    files.expect(f"{file}: parameters", record["parameters"], kinds)
    for name in IDENTITY:
        if settings and name in settings and settings[name] != record["parameters"][name]:
            raise ValueError(
                f"{short(run_dir)} was run with {OPTIONS[name]} {record['parameters'][name]}, not "
                f"{settings[name]}: that is another run; leave --resume away to start it"
            )
    return record


def _new_folder(runs: Path, run_dir: Path | None, settings: Mapping[str, Any]) -> Path:
    what = "-".join(str(settings[name]) for name in ("preset", "dataset", "seed"))
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{what}"
    names = [run_dir] if run_dir else [runs / name, *(runs / f"{name}-{i}" for i in range(2, 100))]
    for folder in names:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # of two that start in one second, one makes it
        except FileExistsError:
            if not (run_dir and _unbegun(folder)):
                continue
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be made ({error.strerror}): give a folder that you may write "
                "to, with --run-dir"
            ) from error
        if not os.access(folder, os.W_OK):
            raise ValueError(f"{folder} cannot be written to: choose another --run-dir")
        return folder.resolve()
    raise ValueError(
        f"{names[0]} is there already; choose another --run-dir, or go on with it: "
        f"--resume {names[0]}"
    )


def _unbegun(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than a start that was killed before its run.json,
    which --resume asks for."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["no folder"]
    part = f".{RECORD}."  # how the record begins while it is written
    return all(n in (".running.lock", "cache") or n.startswith(part) for n in names)


def _point_latest(runs: Path, run_dir: Path) -> None:
    """Make runs/latest a link to the run, in one step; a text file where the system has no
    links."""
    target, link = os.path.relpath(run_dir, runs.resolve()), runs / f".latest.{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        os.symlink(target, link, target_is_directory=True)
        os.replace(link, runs / "latest")
    except OSError:  # Windows without the right to make links, or an install that is only read
        if not os.access(runs, os.W_OK):
            print(f"{short(runs)} is not yours to write: go on with --resume {short(run_dir)}")
            return
        files.write_text(runs / "latest.txt", target + "\n")


def use_own_kernel() -> None:
    """Put the kernels of this environment before those that the user has elsewhere under the same
    name."""
    own, others = (
        str(Path(sys.prefix, "share", "jupyter")),
        os.environ.get("JUPYTER_PATH", "").split(os.pathsep),
    )
    os.environ["JUPYTER_PATH"] = os.pathsep.join(
        [own, *(path for path in others if path not in ("", own))]
    )
    # a cluster may say Agg, which draws nothing into a notebook: a kernel has a backend of its own
    os.environ.pop("MPLBACKEND", None)
    caches.writable()


def _execute_all(story: Mapping[Path, Mapping[str, Any]], run_dir: Path, record: dict) -> int:
    settings = record["parameters"] | {"run_dir": str(run_dir)}
    spec = specs.spec_of(settings["dataset"], settings["data_root"])
    # the code and the data that were read: a run that goes on must not mix the old and the new
    read = {"code": keys.digest(keys.CODE, keys.teaching()), "data": _data_stamp(spec, settings)}
    for path, names in story.items():
        copy = run_dir / "notebooks" / path.name
        parameters = {name: settings[name] for name in names if name in settings}
        stamp = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "parameters": _but_place(parameters),
            **read,
        }
        before = record["notebooks"].get(path.stem, {})
        if copy.is_file() and before.get("state") == "done" and stamp.items() <= before.items():
            print(f"{path.stem:<32}done before", flush=True)
            continue
        entry = record["notebooks"][path.stem] = stamp | {"state": "running", "seconds": 0.0}
        problem = _execute(path, copy, parameters, entry, run_dir, record)
        if problem is not None:
            print(
                f"\n{problem}\ngo on with: {_resume_line(run_dir, path.parent)}",
                file=sys.stderr,
                flush=True,
            )
            return 130 if entry["state"] == "interrupted" else 1
    return 0


def _execute(
    path: Path, copy: Path, parameters: dict, entry: dict, run_dir: Path, record: dict
) -> str | None:
    """Execute one notebook and note how it went in the record; returns what went wrong, None if
    nothing did."""
    files.write_json(run_dir / RECORD, record)
    copy.parent.mkdir(exist_ok=True)
    print(f"{path.stem:<32}", end="", flush=True)
    start, problem = time.monotonic(), None
    # each cell's files are whole when it ends, so its kernel is ended at once, with all that it
    # started
    try:
        done = papermill.execute_notebook(
            braced(path),
            braced(copy),
            parameters,
            kernel_name="python3",
            cwd=path.parent,
            progress_bar=False,
            config=KERNEL,
            kernel_manager_class=kernels.Manager,
            shutdown_kernel="immediate",
        )
        entry["state"] = "done"
    except KeyboardInterrupt:
        entry["state"], problem = (
            "interrupted",
            f"{path.stem}: interrupted; what it made is kept in {short(run_dir)}",
        )
    except (
        Exception
    ) as error:  # a failed cell, a lost kernel, a full disk: all end the run the same way
        entry["state"], problem = "failed", explain(error, path, copy)
    entry["seconds"] = round(time.monotonic() - start, 2)
    peaks = [
        peak
        for peak in (record["peak_rss_mb"], results.peak_rss_mb(), kernels.peak_rss_mb())
        if peak and math.isfinite(peak)
    ]
    record["peak_rss_mb"] = max(peaks, default=math.nan)
    files.write_json(run_dir / RECORD, record)
    cells = "" if problem else f"{sum(cell.cell_type == 'code' for cell in done.cells):>5} cells"
    print(f"{entry['seconds']:>8.1f} s{cells or '   ' + entry['state']}", flush=True)
    return problem


def braced(path: Path) -> str:
    """A path as papermill reads it back: it takes what stands in braces for a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def explain(error: Exception, path: Path, copy: Path) -> str:
    """Notebook, cell, line and cause of a failure, on one screen."""
    lines = []
    if isinstance(error, PapermillExecutionError):
        where, cause = f"cell In [{error.exec_count}] failed", f"{error.ename}: {error.evalue}"
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        # the cell's own line, not a library's
        lines = [line for line in trace if re.match(r"-+> *\d+ ", line)][:1]
    else:
        where, cause = (
            f"cell In [{_cells_started(copy)}] was not finished",
            f"{type(error).__name__}: {error}",
        )
    shown = [line[:200] for line in cause.splitlines()[:20]]
    return "\n".join([f"{path.name}: {where}", *lines, *shown, f"executed so far: {short(copy)}"])


def _cells_started(copy: Path) -> int:
    cells = nbformat.read(copy, as_version=4).cells if copy.is_file() else []
    return sum(
        cell.cell_type == "code" and bool(cell.metadata.papermill.start_time) for cell in cells
    )


def _but_place(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON gives them back, without run_dir: a moved run is still the same run."""
    return json.loads(
        json.dumps({name: value for name, value in parameters.items() if name != "run_dir"})
    )


def _resume_line(run_dir: Path, notebooks: Path) -> str:
    python = short(Path(os.path.abspath(sys.executable)))
    place = [] if notebooks == NOTEBOOKS else ["--notebooks", short(notebooks)]
    return shlex.join([python, "-m", "protolib", "run", "--resume", short(run_dir), *place])


def short(path: Path) -> str:
    """The path from here where it is below, else the whole, as a terminal may have it."""
    here = Path.cwd()
    return files.printed(path.relative_to(here) if path.is_relative_to(here) else path)
