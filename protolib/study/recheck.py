"""Whether results still hold: after a change of code that should change no number, a run of each
experiment is made again, and where all are equal to the last digit the file is today's."""

from collections.abc import Mapping, Sequence

from protolib.study.book import Book, Where

EQUAL = ("scores", "slides")  # what must be the same; times and machines may differ


def chosen(asked: Mapping[Where, str], book: Book) -> list[Where]:
    """The runs to make again: one of each experiment that the book holds under another key, folds
    and seeds in turn.

    asked: {place: the key that it has today}.
    """
    old: dict[str, list[Where]] = {}
    for where in sorted(outdated(asked, book)):
        old.setdefault(where[0], []).append(where)
    return [places[i % len(places)] for i, places in enumerate(old.values())]


def outdated(asked: Mapping[Where, str], book: Book) -> list[Where]:
    """The runs that the book holds under another key than today's."""
    return [w for w, key in asked.items() if w in book.runs and not book.has(w, key)]


def differing(made: Sequence[dict], book: Book) -> list[str]:
    """Each run that does not come out as the book has it: its name, both scores in percent, and
    both machines where they are not of one kind: they need not agree to the last digit."""
    found = []
    for run in made:
        kept = book.runs[run["run"], run["fold"], run["seed"]]
        if any(run.get(part) != kept.get(part) for part in EQUAL):
            before, now = (_score(of) for of in (kept, run))
            said = f"{run['run_id']}: {before:.10g} in the file, {now:.10g} today"
            there, here = (of.get("machine", "?") for of in (kept, run))
            found.append(said if there == here else f"{said}; made on {there}, this is {here}")
    return found


def _score(run: Mapping) -> float:
    block = run["scores"].get("predicted") or run["scores"]["f1"]
    value = block.get("miou", block.get("f1"))
    return float("nan") if value is None else 100 * value


def take_over(asked: Mapping[Where, tuple[str, str]], made: Sequence[dict], book: Book) -> str:
    """Give every outdated run the key, base and code of today, and a mark that says how many were
    made again; the caller has seen that these are equal.

    asked: {place: key and base of today}. Returns the mark, "13 of 144".
    """
    old = outdated({where: key for where, (key, _) in asked.items()}, book)
    mark = f"{len(made)} of {len(old)}"
    for where in old:
        key, base = asked[where]
        book.runs[where] |= {"key": key, "base": base, "code": made[0]["code"], "rechecked": mark}
    book.add(*made)
    return mark
