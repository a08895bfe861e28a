"""Command line: `python -m protolib run` executes the notebooks, `python -m protolib report` shows
what came of it, `python -m protolib predict` applies it to pictures of your own."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# of study/grid.toml
TABLES = (
    *("table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4"),
    *("ours", "schedule", "followups", "when"),
)


def parser() -> argparse.ArgumentParser:
    """The options of each command; one left out is None, so that a resumed run keeps its
    own."""
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
    for command in (run, ablate, plan, report, predict, lab, site):
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
    interrupted."""
    args, more = parser().parse_known_args(argv)
    if more and args.command != "lab":  # JupyterLab's own options
        parser().parse_args(argv)
    args.more = more
    notebooks = (args.notebooks or Path(__file__).parent.parent / "notebooks").resolve()
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "several processes were started, by torchrun or accelerate launch; start one, and "
                "say how many shall train: python -m protolib run --processes 2"
            )
        return COMMANDS[args.command](args, notebooks)
    except ValueError as error:
        print(f"protolib: {error}", file=sys.stderr)
        return 2


# each command imports what it needs: --help and a misspelt option answer at once, and the ledger
# does not wait for torch


def _run(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.study import runner

    if args.processes:
        os.environ["PROTOLIB_PROCESSES"] = str(args.processes)  # of the kernels to come
    given = {
        "preset": args.preset,
        "dataset": args.dataset,
        "data_root": args.data and str(args.data.resolve()),
        "seed": args.seed,
        "device": args.device,
    }
    settings = {name: value for name, value in given.items() if value is not None} | runner.parse(
        args.pairs
    )
    return runner.run(notebooks, settings, run_dir=args.run_dir, resume=args.resume)


def _ablate(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib.study import ablate

    plan = ablate.Plan(
        tables=TABLES[:-1] if "all" in args.tables else args.tables,
        preset=args.preset,
        dataset=args.dataset,
        roots=[str(root.resolve()) for root in args.data or ()] or [""],
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


def _predict(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import files, presets
    from protolib.experiment import Run
    from protolib.slides.predict import predict
    from protolib.study import runner

    folder = runner.find(notebooks.parent / "runs", args.run_dir)
    given = files.read_json(folder / "run.json")["parameters"]
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
}

if __name__ == "__main__":
    sys.exit(main())
