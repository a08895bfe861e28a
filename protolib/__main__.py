"""Command line: `python -m protolib run` executes the notebooks, `python -m protolib report` shows a run again."""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4")  # of grid.toml


def parser() -> argparse.ArgumentParser:
    """The options of `run` and `report`; one left out is None, so that a resumed run keeps its own."""
    top = argparse.ArgumentParser(prog="python -m protolib", description="protolib's notebooks from the command line")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks in order into a folder of their own under runs/")
    run.add_argument("--preset", help="every setting under one name, see protolib/presets.toml (default: quick)")
    run.add_argument("--dataset", metavar="NAME",
                     help="phantom (default, no files needed), bcss-wsss, luad-histoseg, bcss, gcss or custom")
    run.add_argument("--data", metavar="DIR", type=Path, help="folder of that data set")
    run.add_argument("--seed", metavar="N", type=int, help="0, 1, 2, ... (default: 0)")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: auto")
    run.add_argument("-p", dest="pairs", metavar="NAME=VALUE", action="append", default=[],
                     help="any other parameter of the notebooks; may be given several times")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--resume", metavar="RUN_DIR", nargs="?", const="latest",
                       help="go on with the newest run, or with this one")
    where.add_argument("--run-dir", metavar="DIR", type=Path,
                       help="write the run here, not in a new folder under runs/")
    ablate = commands.add_parser("ablate", help="run the grid of the paper's tables, a notebook a cell, into results/")
    ablate.add_argument("tables", metavar="TABLE", nargs="+", choices=("all", *TABLES), help=f"all, or some of {', '.join(TABLES)}")
    ablate.add_argument("--preset", default="lean", help="default: lean, made for laptops; paper_text wants GPUs")
    ablate.add_argument("--dataset", metavar="NAME", default="phantom", help="as in run")
    ablate.add_argument("--data", metavar="DIR", type=Path, help="folder of that data set")
    ablate.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="default: 0,1,2")
    ablate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    ablate.add_argument("--jobs", metavar="N", type=int, default=0,
                        help="cells at a time (default: one per GPU, or per core and 3 GB of free memory)")
    report = commands.add_parser("report", help="print the results of a run and write its report.html again")
    report.add_argument("run_dir", metavar="RUN_DIR", nargs="?", default="latest", help="default: the newest run")
    for command in (run, ablate, report):
        command.add_argument("--notebooks", metavar="DIR", type=Path,
                             help="folder with 0*.ipynb; runs/ stands beside it")
    return top


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(seed) for seed in text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a cell failed, 2 refused before work, 130 interrupted."""
    args = parser().parse_args(argv)
    from protolib import runner  # after parsing: --help and a misspelt option answer at once

    if args.command == "ablate":
        return _ablate(args, (args.notebooks or runner.NOTEBOOKS).resolve())

    notebooks = (args.notebooks or runner.NOTEBOOKS).resolve()
    try:
        if args.command == "report":
            return runner.report(runner.find(notebooks.parent / "runs", args.run_dir))
        given = {"preset": args.preset, "dataset": args.dataset, "data_root": args.data and str(args.data.resolve()),
                 "seed": args.seed, "device": args.device}
        settings = {name: value for name, value in given.items() if value is not None} | runner.parse(args.pairs)
        return runner.run(notebooks, settings, run_dir=args.run_dir, resume=args.resume)
    except ValueError as error:
        print(f"protolib: {error}", file=sys.stderr)
        return 2


def _ablate(args: argparse.Namespace, notebooks: Path) -> int:
    from protolib import ablate  # torch with it, which the other commands do not need

    names = TABLES if "all" in args.tables else args.tables
    root = str(args.data.resolve()) if args.data else ""
    try:
        return ablate.run(notebooks, names, args.dataset, root, args.preset, args.seeds, args.device, args.jobs)
    except ValueError as error:
        print(f"protolib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
