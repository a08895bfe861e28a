"""Command line: `python -m data_download list | get NAME | verify NAME | status`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of each command."""
    top = argparse.ArgumentParser(
        prog="python -m data_download",
        description="the published data sets and weights, whole or not at all",
    )
    commands = top.add_subparsers(dest="command", required=True)
    add = {
        name: commands.add_parser(name, help=text, description=text)
        for name, text in (
            ("list", "what there is, under which licence, from where"),
            ("get", "download, unpack, arrange and verify; repeat it after any interruption"),
            ("verify", "check what is there"),
            ("status", "how far each is"),
        )
    }
    for name in ("get", "verify"):
        own = "; or custom: the folder --to, with its dataset.toml" * (name == "verify")
        help_ = "one of those that `list` shows"
        add[name].add_argument("name", metavar="NAME", help=help_ + own)
    for name in ("get", "verify", "status"):
        add[name].add_argument(
            "--to",
            metavar="DIR",
            type=Path,
            help="the folder it ends in (default: data/NAME; weights: where protolib looks)",
        )
    where = add["get"].add_mutually_exclusive_group()
    where.add_argument(
        "--mirror", metavar="M", default="", help="only from this one of its mirrors"
    )
    where.add_argument(
        "--from-local",
        metavar="ARCHIVE_OR_FOLDER",
        type=Path,
        help="not from the network but from what you have; it is left as it is",
    )
    add["get"].add_argument(
        "--accept-licence", action="store_true", help="you have read its licence and accept it"
    )
    add["verify"].add_argument(
        "--fix", action="store_true", help="put what is wrong into a quarantine, delete nothing"
    )
    for command in add.values():
        command.add_argument(
            "--registry", metavar="FILE", type=Path, help="another registry: your institution's"
        )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 refused or problems found, 130
    interrupted."""
    args = parser().parse_args(argv)
    from data_download import (  # after parsing: --help and a misspelt option answer at once
        fetch,
        registry,
    )
    from protolib import files

    files.speak_anywhere()
    try:
        entries = registry.load(args.registry or registry.OWN)
        if args.command == "list":
            print(fetch.table(entries))
        elif args.command == "status":
            print(fetch.status(entries, args.to))
        elif args.command == "verify" and args.name == "custom":
            return fetch.verify_own(args.to and files.place(args.to), args.fix)
        elif args.command == "verify":
            return fetch.verify(registry.find(entries, args.name), args.to, args.fix)
        else:
            entry = registry.find(entries, args.name)
            return fetch.get(entry, args.to, args.mirror, args.accept_licence, args.from_local)
        return 0
    except (registry.Refused, ValueError) as error:
        lines = map(files.printed, str(error).splitlines())
        print("data_download:", "\n".join(lines), file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):  # Ctrl-C, or Ctrl-D at the question
        again = shlex.join(
            ["python", "-m", "data_download", *(sys.argv[1:] if argv is None else argv)]
        )
        print(f"\ndata_download: stopped; what came is kept. Go on with: {again}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
