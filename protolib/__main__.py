"""Command line: `python -m protolib run` executes the notebooks, `python -m protolib report` shows
what came of it, `python -m protolib predict` applies it to pictures of your own."""

import argparse
import json
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# of study/grid.toml
TABLES = (
    *("table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4"),
    *("ours", "schedule", "followups", "stain", "when"),
)


def parser() -> argparse.ArgumentParser:
    """The options of all commands; one of `run` that is left out is None, so that a resumed run
    keeps its own."""
    top = argparse.ArgumentParser(
        prog="python -m protolib", description="protolib's notebooks from the command line"
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="execute the notebooks in order into a folder of their own under runs/"
    )
    run.add_argument(
        "--preset", help="every setting under one name, see protolib/presets.toml (default: quick)"
    )
    run.add_argument(
        "--dataset",
        metavar="NAME",
        help="phantom (default, no files needed), bcss-wsss, luad-histoseg, bcss, gcss or custom",
    )
    run.add_argument("--data", metavar="DIR", type=Path, help="folder of that data set")
    run.add_argument("--seed", metavar="N", type=seed, help="0, 1, 2, ... (default: 0)")
    run.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1 or mps")
    run.add_argument(
        "--processes",
        metavar="N",
        type=int,
        choices=range(1, 65),
        help="so many train and predict together, on a GPU each if there are any (default: 1)",
    )
    run.add_argument(
        "-p",
        dest="pairs",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other parameter of the notebooks; may be given several times",
    )
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--resume",
        metavar="RUN_DIR",
        nargs="?",
        const="latest",
        help="go on with the newest run, or with this one",
    )
    where.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help="write the run here, not in a new folder under runs/",
    )
    ablate = commands.add_parser(
        "ablate", help="run the grid of the paper's tables, one notebook a run, into results/"
    )
    ablate.add_argument(
        "tables",
        metavar="TABLE",
        nargs="+",
        choices=("all", *TABLES),
        help=f"all but when, a sweep over kinds of data; or some of {', '.join(TABLES)}",
    )
    ablate.add_argument(
        "--preset", default="lean", help="default: lean, made for laptops; paper_text wants GPUs"
    )
    ablate.add_argument("--dataset", metavar="NAME", default="phantom", help="as in run")
    ablate.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        action="append",
        help="folder of that data set; given several times: folds, whose slides are pooled",
    )
    ablate.add_argument(
        "--seeds", metavar="N,N", type=seeds, default=(0, 1, 2), help="default: 0,1,2"
    )
    ablate.add_argument("--device", metavar="NAME", default="auto", help="as in run")
    ablate.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=0,
        help="runs at a time (default: one per GPU, or per core and 3 GB of free memory)",
    )
    spread = ablate.add_mutually_exclusive_group()
    spread.add_argument(
        "--cluster",
        metavar="WHERE",
        default="",
        help="send each run to a Dask cluster: local, slurm or the address of its scheduler",
    )
    spread.add_argument(
        "--shard",
        metavar="I/N",
        type=shard,
        default=(1, 1),
        help="the I-th of N parts of the runs, for an array job; report merges them",
    )
    spread.add_argument(
        "--recheck",
        action="store_true",
        help="after a change of code that changes no number: make one run of each experiment "
        "again; where all are equal to the last digit, the others stay",
    )
    plan = commands.add_parser(
        "plan", help="memory, time and disk of a run, from ten steps of each training here"
    )
    plan.add_argument("--preset", default="quick", help="as in run")
    plan.add_argument("--images", metavar="N", type=int, required=True, help="patches to train on")
    where_to = plan.add_mutually_exclusive_group()
    where_to.add_argument("--device", metavar="NAME", default="auto", help="as in run")
    where_to.add_argument(
        "--gpu", metavar="NAME", default="", help="a card that is not here, such as H100"
    )
    report = commands.add_parser(
        "report",
        help="the paper's tables with ours beside them, or the results of a run",
        description="Print the paper's tables with ours beside them, from results/; or, with "
        "RUN_DIR, the results of a run, whose report.html is written again.",
    )
    report.add_argument(
        "run_dir", metavar="RUN_DIR", nargs="?", help="a run, or latest: the newest"
    )
    kind = report.add_mutually_exclusive_group()
    kind.add_argument(
        "--html", metavar="FILE", type=Path, help="write the tables, with figures, as a page"
    )
    kind.add_argument(
        "--json", action="store_true", help="print the tables as one JSON list of rows"
    )
    lab = commands.add_parser(
        "lab",
        help="JupyterLab on your own copies of the notebooks, made where they are missing",
        description="JupyterLab on your own copies of the notebooks. What this command does not "
        "know is handed on to JupyterLab.",
    )
    lab.add_argument(
        "--desk", metavar="DIR", type=Path, help="folder of the copies (default: work/ of the kit)"
    )
    lab.add_argument(
        "--reset",
        metavar="NN",
        default="",
        help="a fresh copy of one notebook, 03 say; the old one is kept in DIR/old",
    )
    lab.add_argument(
        "--only-copy", action="store_true", help="do not start JupyterLab: a hub has its own"
    )
    site = commands.add_parser(
        "site", help="notebooks, glossary and docs as pages that need no server; runs nothing"
    )
    site.add_argument("out", metavar="DIR", type=Path, help="made anew, site/ say")
    edition = commands.add_parser(
        "edition", help="the notebooks for one side of the desk, as a folder and a zip"
    )
    edition.add_argument(
        "edition",
        choices=("student", "teacher", "slides", "answers"),
        help="without solutions, with notes, as slides, or the exercises with answers",
    )
    edition.add_argument("out", metavar="OUT", type=Path, help="OUT/EDITION/ and OUT/EDITION.zip")
    grade = commands.add_parser(
        "grade", help="run the exercises of a class and write their points as a CSV"
    )
    grade.add_argument(
        "folder", metavar="FOLDER", type=Path, help="submissions, one folder a learner"
    )
    grade.add_argument(
        "--csv", metavar="FILE", type=Path, help="write it here, not to FOLDER/grades.csv"
    )
    new = commands.add_parser(
        "new",
        help="describe a data set of your own, from what its folder holds",
        description="Write the dataset.toml of a folder: of patches with labels in their names, "
        "beside them; of patches with a table of labels, or of region images with annotations that "
        "QuPath exported as GeoJSON, with the patches that are made of them, to --out.",
    )
    new.add_argument("dataset", metavar="DATASET", help="a name for it")
    new.add_argument("folder", metavar="FOLDER", type=Path, help="what there is")
    new.add_argument(
        "--out", metavar="DIR", default="", help="a new folder for patches that it makes"
    )
    new.add_argument(
        "--classes",
        metavar="A,B",
        type=words,
        default=(),
        help="names in the order of the label's digits, or A=title of A,...; asked for otherwise",
    )
    new.add_argument(
        "--codes", metavar="N,N", type=numbers, default=(), help="values in masks, one per class"
    )
    new.add_argument(
        "--ignored", metavar="N,N", type=numbers, default=(), help="values in masks of no class"
    )
    new.add_argument(
        "--palette",
        metavar="RRGGBB,..",
        type=colours,
        default=(),
        help="colours of masks, one per class, then ignore",
    )
    new.add_argument(
        "--slide", metavar="REGEX", default="", help="finds the slide in the name of a file"
    )
    new.add_argument("--mpp", metavar="UM", type=float, default=0.0, help="micrometres per pixel")
    new.add_argument(
        "--size", metavar="PX", type=int, default=224, help="side of patches cut from regions"
    )
    new.add_argument("--csv", metavar="FILE", type=Path, help="table of labels, if not in FOLDER")
    doctor = commands.add_parser(
        "doctor", help="what this machine has, and which encoders are here, can be had or are gated"
    )
    doctor.add_argument(
        "--licences", action="store_true", help="of all packages and weights, and nothing else"
    )
    for command in (run, ablate):
        command.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="run the code of an encoder's repository (hf:OWNER/NAME); read it first",
        )
    predict = commands.add_parser(
        "predict",
        help="masks, outlines for QuPath and areas of your own pictures, by a trained run",
        description="Predict pictures of any size with a trained run. Each gets a folder in DIR "
        "with its mask, outlines.geojson for QuPath, areas.csv and report.html.",
    )
    predict.add_argument("run_dir", metavar="RUN", help="a run, or latest: the newest")
    predict.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=Path,
        help="an image, a slide, or a folder of them: PNG, JPEG, TIFF, OME-TIFF, and the formats "
        "of scanners where openslide-python is installed",
    )
    predict.add_argument("--out", metavar="DIR", type=Path, required=True)
    predict.add_argument(
        "--method",
        default="pbip_stage1",
        choices=("pbip_stage1", "pbip_stage2", "nearest_prototype"),
        help="default: pbip_stage1; stage 2 takes many times as long",
    )
    predict.add_argument(
        "--mpp", metavar="UM", type=micrometres, default=0.0, help="micrometres per pixel of INPUT"
    )
    predict.add_argument("--device", metavar="NAME", default="auto", help="as in run")
    predict.add_argument(
        "--resume", action="store_true", help="go on with what was stopped, keep what is finished"
    )
    for command in (run, ablate, plan, report, lab, site, edition, grade, predict):
        command.add_argument(
            "--notebooks",
            metavar="DIR",
            type=Path,
            help="folder with 0*.ipynb; runs/ and results/ stand beside it",
        )
    return top


def seed(text: str) -> int:
    """A whole number from 0 on; raises argparse's error for anything else."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give 0, 1, 2, ...")
    return int(text)


def seeds(text: str) -> tuple[int, ...]:
    """The seeds of "0,1,2", each once; raises as seed does."""
    return tuple(dict.fromkeys(seed(part) for part in text.split(",")))


def shard(text: str) -> tuple[int, int]:
    """The part and the number of parts of "3/16"; raises argparse's error for anything else."""
    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; give 1/16 to 16/16")
    return int(part), int(of)


def words(text: str) -> tuple[str, ...]:
    """The parts of "a,b", without spaces around them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[int, ...]:
    """The mask values of "0,1,255"; raises argparse's error for anything else."""
    if not all(part.isdecimal() and int(part) < 256 for part in words(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: give mask values of 0..255, as in 0,1,2")
    return tuple(map(int, words(text)))


def colours(text: str) -> tuple[tuple[int, ...], ...]:
    """The colours of "ff0000,ffffff"; raises argparse's error for anything else."""
    try:
        made = tuple(tuple(bytes.fromhex(part.lstrip("#"))) for part in words(text))
    except ValueError:
        made = ((),)
    if any(len(colour) != 3 for colour in made):
        raise argparse.ArgumentTypeError(f"{text!r}: give colours as in ff0000,00ff00,ffffff")
    return made


def micrometres(text: str) -> float:
    """A number above 0; raises argparse's error for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no resolution; give micrometres, 0.25 say")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a cell failed, 2 refused before work, 130
    interrupted, 143 and 129 ended by SIGTERM and SIGHUP."""
    args, more = parser().parse_known_args(argv)
    if more and args.command != "lab":  # JupyterLab's own options
        parser().parse_args(argv)
    args.more = more
    from protolib import files

    files.speak_anywhere()
    notebooks = files.place(
        getattr(args, "notebooks", None) or Path(__file__).parent.parent / "notebooks"
    ).resolve()
    with _stoppable() as caught:
        try:
            if getattr(args, "trust_remote_code", False):
                from protolib.nets.published import TRUST

                os.environ[TRUST] = "1"  # the notebooks' kernels are processes of this one
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ValueError(
                    "several processes were started, by torchrun or accelerate launch; start one, "
                    "and say how many shall train: python -m protolib run --processes 2"
                )
            status = COMMANDS[args.command](args, notebooks)
        except (ValueError, OSError) as error:  # OSError: a full disk, a quota, a read-only folder
            said = str(error)
            if isinstance(error, OSError) and error.filename and error.strerror:
                said = f"{error.filename}: {error.strerror}"
            lines = map(files.printed, said.splitlines())
            print("protolib:", "\n".join(lines), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nprotolib: stopped before work", file=sys.stderr)
            status = 130
    return 128 + caught[0] if caught and status == 130 else status


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: what is made is kept, no kernel stays.
    Yields the signals that came."""
    caught: list[int] = []

    def stop(number: int, _) -> None:
        caught.append(number)
        # what is cut off may be half made, an event loop without its socket, a call that nobody
        # awaits: it would print a traceback when it is collected
        sys.unraisablehook = lambda _: None
        warnings.simplefilter("ignore", RuntimeWarning)
        raise KeyboardInterrupt

    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, stop)
    try:
        with warnings.catch_warnings():
            yield caught
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


# each command imports what it needs: --help and a misspelt option answer at once, and the ledger
# does not wait for torch


def _run(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import files
    from protolib.study import runner

    if args.processes:
        os.environ["PROTOLIB_PROCESSES"] = str(args.processes)  # of the kernels to come
    given = {
        "preset": args.preset,
        "dataset": args.dataset,
        "data_root": args.data and str(files.place(args.data).resolve()),
        "seed": args.seed,
        "device": args.device,
    }
    settings = {name: value for name, value in given.items() if value is not None} | runner.parse(
        args.pairs
    )
    return runner.run(notebooks, settings, run_dir=args.run_dir, resume=args.resume)


def _ablate(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import files
    from protolib.study import ablate

    plan = ablate.Plan(
        tables=TABLES[:-1] if "all" in args.tables else args.tables,
        preset=args.preset,
        dataset=args.dataset,
        roots=[str(files.place(root).resolve()) for root in args.data or ()] or [""],
        seeds=args.seeds,
    )
    return ablate.run(
        notebooks, plan, args.device, args.jobs, args.cluster, args.shard, args.recheck
    )


def _plan(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import blocks, presets
    from protolib.study import plan

    made = plan.plan(presets.preset(args.preset), args.images, args.device, args.gpu)
    print(blocks.markdown(made, width=blocks.TERMINAL), end="")
    return 0


def _report(args: argparse.Namespace, notebooks: Path) -> int:
    if args.run_dir is None:
        from protolib.study import book

        home = notebooks.parent
        for file, (got, missing) in book.gather(home / "runs/ablations", home / "results").items():
            print(f"{file}: {got} runs of shards taken in, {missing} missing", file=sys.stderr)
        return show(notebooks.parent / "results", args.html, args.json)
    if args.html or args.json:
        raise ValueError(
            f"--html and --json show the paper's tables, not the run {args.run_dir}; leave one away"
        )
    from protolib.study import runner

    return runner.report(runner.find(notebooks.parent / "runs", args.run_dir))


def _edition(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.teach import editions

    print(f"{args.edition}: {editions.write(notebooks, args.edition, args.out)}")
    return 0


def _grade(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.study.runner import use_own_kernel
    from protolib.teach import grade

    use_own_kernel()
    print(f"grades: {grade.write(notebooks, args.folder, args.csv)}")
    return 0


def _doctor(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.study import doctor

    print(doctor.licences() if args.licences else doctor.report(), end="")
    return 0


def _new(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.own import new
    from protolib.presets import PRESETS

    told = {name: getattr(args, name) for name in new.Told.__dataclass_fields__ if name != "ask"}
    ask = input if sys.stdin.isatty() else None
    made = new.describe(args.dataset, args.folder, new.Told(**told, ask=ask), args.out)
    print(f"{made.root / 'dataset.toml'}:\n\n{new.toml(made.spec)}")
    needs = new.needs(made.labels, made.spec.classes, PRESETS["quick"])
    print("\n".join(f"- {line}" for line in (*made.notes, *needs)))
    print(f"\nRun it: make run DATASET={made.spec.name} DATA={made.root.resolve()}")
    return 0


def _predict(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import presets
    from protolib.experiment import Run
    from protolib.slides.predict import predict
    from protolib.study import runner

    folder = runner.find(notebooks.parent / "runs", args.run_dir)
    given = runner.record_of(folder)["parameters"]
    changes = {name: given[name] for name in runner.CHANGES if given.get(name)}
    p = presets.changed(presets.preset(given["preset"]), changes)
    run = Run(p, given["dataset"], given["data_root"], folder, given["seed"], args.device)
    try:
        predict(run, args.inputs, args.out, args.method, args.mpp, args.resume)
    except KeyboardInterrupt:
        print("\ninterrupted; go on with the same command and --resume", file=sys.stderr)
        return 130
    return 0


def show(folder: Path, page: Path | None = None, as_json: bool = False) -> int:
    """Print the ledger of a folder of result files, as text or as JSON, or write it as a page.
    Returns 0."""
    from protolib.study import ledger, report  # neither these nor the page load torch

    found = ledger.read(folder)
    if as_json:
        print(json.dumps(ledger.rows(found), indent=1, ensure_ascii=False, allow_nan=False))
    elif page:
        from protolib import files
        from protolib.study import figures, html

        drawn = {
            name: (figures.png(figures.figure(found, name)), figures.CAPTION)
            for name in figures.PANELS
        }
        if any(map(figures.cases, found)):
            drawn["when"] = figures.png(figures.when(found)), figures.WHEN
        files.write_text(page, html.ledger(found, drawn))
        print(f"ledger: {page}")
    else:
        print(report.text(found), end="")
    return 0


def _lab(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.teach import desk

    place = (args.desk or notebooks.parent / "work").expanduser().resolve()
    if args.only_copy:
        print(f"{len(desk.lay_out(notebooks, place, args.reset))} new copies in {place}")
        return 0
    return desk.start(notebooks, place, args.reset, tuple(args.more))


def _site(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.teach import site

    pages = site.write(notebooks.parent, args.out)
    print(f"site: {args.out / 'index.html'}, {len(pages)} pages")
    return 0


COMMANDS = {
    "run": _run,
    "ablate": _ablate,
    "plan": _plan,
    "report": _report,
    "predict": _predict,
    "lab": _lab,
    "site": _site,
    "edition": _edition,
    "grade": _grade,
    "new": _new,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
