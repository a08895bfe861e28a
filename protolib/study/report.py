"""The ledger in words: blocks of text that a terminal, notebook 07 and a page show."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from protolib import blocks
from protolib.blocks import Block, Heading, Items, Paragraph, Table
from protolib.metrics import SCORES, Protocol
from protolib.study import compare, ledger, paper

TITLE = "The paper's tables, ours beside them"
SAY = (
    "Ours is the mean ± standard deviation (of a sample) over seeds; blank = not run; hours are of "
    "training, all seeds together. A conclusion is supported where the 95 % intervals of our "
    "difference lie above 0 both over seeds (paired t-test) and over slides (bootstrap, all "
    "patches of a slide together), contradicted where both lie below, else not decided. d is the "
    "mean difference in standard deviations of the differences. No p is corrected for the number "
    "of conclusions."
)
EMPTY = (
    "No results yet: `python -m protolib ablate table2 --dataset phantom` makes the first. What "
    "follows is the paper's alone, ours is blank."
)
HEADLINE = {"%": "miou", "F1": "f1"}  # the metric that the paper concludes from
ZERO_SHOT = "nearest prototype, main class of each test patch"  # the protocol of F1


class Finding(NamedTuple):
    """One claim and what the runs of one result file say of it; differences in the table's unit."""

    claim: paper.Claim
    rows: tuple[str, str]  # that were compared: the claim's, or in Figure 4 those in their place
    printed: float | None  # the difference of the paper's own numbers; None for a claim of ours
    verdict: str  # see compare.verdict; "not run" where a row is missing
    ours: compare.Paired | None = None  # over the seeds that both rows have
    slides: tuple[float, float] | None = None  # 95 % interval over slides
    n_slides: int = 0
    why: str = ""  # no interval over slides was taken
    # over seeds too, under oracle labels: what the maps are worth, as pseudo masks are made of them
    given: compare.Paired | None = None


def findings(table: paper.Table, result: Mapping) -> list[Finding]:
    """The paper's conclusions from a table, then our own questions, judged by the runs of a result
    file under predicted image labels.

    result: one of what ledger.read returns. mIoU is compared over seeds and over slides, F1 over
    seeds. Notebook 07.
    """
    dataset = ledger.beside(table, result)
    claims = [
        claim
        for claim in paper.CLAIMS
        if claim.table == table.name and (claim.ours or claim.dataset == dataset)
    ]
    return [
        _finding(table, result, claim) for claim in sorted(claims, key=lambda claim: claim.ours)
    ]


def _finding(table: paper.Table, result: Mapping, claim: paper.Claim) -> Finding:
    pair = _run_rows(table, result, claim)
    better, than = (
        {seed.seed: seed for seed in ledger.seeds_of(result, table.name, row)} for row in pair
    )
    blank = Finding(claim, pair, _printed_difference(claim), "not run")
    seeds = [seed for seed in better if seed in than]
    if not seeds:
        words = "not run: no seed in common" if better and than else "not run"
        return blank._replace(verdict=words)
    ours = [better[seed] for seed in seeds]
    theirs = [than[seed] for seed in seeds]
    protocol, *others = ours[0].scores  # "predicted" and "oracle", or "f1" alone
    scale = ledger.scale(table)

    def over_seeds(labels: str) -> compare.Paired:
        return compare.paired(
            *([scale * seed.scores[labels][claim.metric] for seed in of] for of in (ours, theirs))
        )

    found = over_seeds(protocol)
    judged = blank._replace(verdict=compare.verdict(found), ours=found)
    if claim.metric != "miou":
        return judged
    judged = judged._replace(given=over_seeds("oracle") if "oracle" in others else None)
    if why := _not_over_slides(ours, theirs, protocol):
        return judged._replace(why=why)
    ignore = ours[0].scores[protocol]["ignore"]
    a, b = _matrices(ours, protocol), _matrices(theirs, protocol)
    low, high = (scale * end for end in compare.over_slides(a, b, ignore))
    verdict = compare.verdict(found, (low, high))
    return judged._replace(verdict=verdict, slides=(low, high), n_slides=len(ours[0].slides))


def _printed_difference(claim: paper.Claim) -> float | None:
    if claim.ours:
        return None
    better, than = (
        paper.value(claim.table, row, claim.dataset, claim.metric)
        for row in (claim.better, claim.than)
    )
    return better.mean - than.mean


def _not_over_slides(
    ours: Sequence[ledger.Seed], theirs: Sequence[ledger.Seed], protocol: str
) -> str:
    """Why no bootstrap over slides can be made: seeds and rows must have been scored on the same
    slides with the same masks; "" where they were."""
    if not all(seed.slides for seed in (*ours, *theirs)):
        return "no slides were kept"
    truths, others = ([_truth(seed, protocol) for seed in of] for of in (ours, theirs))
    if any(truth != truths[0] for truth in truths):
        return "each seed has test slides of its own"
    return "" if truths == others else "the rows were scored on different masks"


def _truth(seed: ledger.Seed, protocol: str) -> dict[str, list[int]]:
    """The true pixels of each class in each slide: a row of a matrix adds up to them, whatever was
    predicted."""
    return {slide: of[protocol].sum(axis=1).tolist() for slide, of in seed.slides.items()}


def _matrices(seeds: Sequence[ledger.Seed], protocol: str) -> np.ndarray:
    """(seeds, slides, C+1, C+1)"""
    return np.array([[seed.slides[slide][protocol] for slide in seeds[0].slides] for seed in seeds])


def _run_rows(table: paper.Table, result: Mapping, claim: paper.Claim) -> tuple[str, str]:
    """The two rows of a claim; where Figure 4's banks are larger than the data, the largest smaller
    ones that were run.

    Clustering is compared with chance at one size, for that is what the claim is about.
    """
    asked = claim.better, claim.than
    if table.name != "figure4" or all(ledger.seeds_of(result, table.name, row) for row in asked):
        return asked
    run = {
        ledger.point(row)
        for row in result["tables"].get(table.name, {})
        if ledger.seeds_of(result, table.name, row)
    }
    (first, top), (second, at) = map(ledger.point, asked)
    one_sweep = first == second
    sizes = [
        n
        for kind, n in run
        if kind == first
        and n <= top
        and ((second, at) in run and n > at if one_sweep else (second, n) in run)
    ]
    if not sizes:
        return asked
    most = max(sizes)
    return f"{first}, {most:g} images", f"{second}, {at if one_sweep else most:g} images"


def text(results: Sequence[Mapping]) -> str:
    """The whole ledger as Markdown for a terminal: tables, conclusions, re-runs by others, peers,
    window, self-contradictions.

    results: as ledger.read returns them; with none, the paper's numbers alone.
    """
    parts = chain.from_iterable(section.values() for section in sections(results).values())
    return blocks.markdown(chain.from_iterable(parts), width=blocks.TERMINAL)


def sections(results: Sequence[Mapping]) -> dict[str, dict[str, list[Block]]]:
    """What `text` says as {section: {part: blocks}}.

    Sections: "head", one for each of paper.TABLES, "others", "window", "itself". Parts: "title"
    and "text"; of a table "title", "runs" (tables of ours), "conclusions" and "paper" (the paper's
    numbers on data that was not run). Notebook 07.
    """
    entries = ledger.rows(results)
    itself = Items([f"{topic}. {sentence}" for topic, sentence in paper.contradictions()])
    window = Heading("Where a faithful stage 1 should lie, mIoU (%)")
    disagrees = Heading("Where the paper disagrees with itself")
    return {
        "head": {
            "title": [Heading(TITLE, level=1)],
            "text": [Paragraph(SAY if results else EMPTY)],
        },
        **{table.name: _section(table, results, entries) for table in paper.TABLES.values()},
        "others": {"title": [Heading("What others report")], "text": _others()},
        "window": {"title": [window], "text": [_window(results)]},
        "itself": {"title": [disagrees], "text": [itself]},
    }


def title(table: paper.Table) -> str:
    """The heading of a table: "Table 2: Losses (stage 1)", "Ours: ..."."""
    kind = table.name.rstrip("0123456789")
    number = table.name.removeprefix(kind)
    return f"{' '.join(filter(None, (kind.capitalize(), number)))}: {table.title} ({table.stage})"


def head(metric: str) -> str:
    """A metric as the head of a column, with its unit: "mIoU (%)", "F1", "F1 TUM"."""
    return f"{_short(metric)} (%)" if metric in SCORES else _short(metric)


def _short(metric: str) -> str:
    return SCORES.get(metric, metric.replace("f1", "F1").replace("_", " "))


def _section(
    table: paper.Table, results: Sequence[Mapping], entries: Sequence[Mapping]
) -> dict[str, list[Block]]:
    """A table's parts: what was run, file by file, then the paper's data sets that nothing stands
    beside."""
    runs: list[Block] = []
    conclusions: list[Block] = []
    covered = set()
    for result in results:
        place = table.name, ledger.name(result), result["preset"]
        own = [e for e in entries if (e["table"], e["dataset"], e["preset"]) == place]
        if own:
            covered.add(ledger.beside(table, result))
            runs += _run(table, result, own)
            conclusions += _conclusions(table, result)
        runs += _reasons(table, result)
    datasets = dict.fromkeys(v.dataset for v in paper.VALUES if v.table == table.name)
    printed = [
        block
        for dataset in datasets
        if dataset not in covered
        for block in _printed(table, dataset)
    ]
    if not covered and not datasets:
        printed = [Paragraph("Not run.")]
    return {
        "title": [Heading(title(table))],
        "runs": runs,
        "conclusions": conclusions,
        "paper": printed,
    }


def _run(table: paper.Table, result: Mapping, own: Sequence[Mapping]) -> Iterator[Block]:
    """Table and warning of one result file; own: its rows of the ledger."""
    yield _ours(table, result, own)
    few = dict.fromkeys(f"{e['row']} ({e['seeds']})" for e in own if e["seeds"] < compare.FEW_SEEDS)
    if few:
        yield Paragraph(
            f"fewer than {compare.FEW_SEEDS} seeds on {ledger.name(result)}, which tells little: "
            f"{'; '.join(few)}.",
            warning=True,
        )


def _conclusions(table: paper.Table, result: Mapping) -> Iterator[Block]:
    """The paper's conclusions, then ours, as lists."""
    found = findings(table, result)
    for ours in (False, True):
        some = [finding for finding in found if finding.claim.ours == ours]
        lines = [_sentence(table, result, finding) for finding in some if finding.ours]
        if blank := [_claim(table, finding) for finding in some if not finding.ours]:
            lines.append(f"not run on {ledger.name(result)}: {'; '.join(blank)}.")
        if lines and ours:
            yield Paragraph("Ours, beside the paper:")
        if lines:
            yield Items(lines)


def _reasons(table: paper.Table, result: Mapping) -> Iterator[Block]:
    """Why rows have no score or lack a seed, the rows of one reason together."""
    rows: dict[str, list[str]] = {}
    for row in result["tables"].get(table.name, {}):
        if why := ledger.why_not(result, table.name, row):
            rows.setdefault(why, []).append(row)
    if rows:
        yield Paragraph(f"Not run on {ledger.name(result)}, preset {result['preset']}, and why:")
        yield Items([f"{'; '.join(names)}: {why}" for why, names in rows.items()])


def _caption(table: paper.Table, result: Mapping, own: Sequence[Mapping]) -> str:
    """On what data and under which protocol the numbers were made, and what stands beside them."""
    budget = f"({result['size']} px, {result['epochs']} epochs)"
    protocols = dict.fromkeys((e["image_labels"], e["ignore"]) for e in own)
    said = " / ".join(_protocol(*of) for of in protocols if of[0] != "oracle")
    oracle = "".join(f"; oracle mIoU: {_protocol(*of)}" for of in protocols if of[0] == "oracle")
    sentences = [
        f"{ledger.name(result)} ({_patches(result)}), preset {result['preset']} {budget}",
        f"Protocol: {said}{oracle}",
    ]
    if dataset := ledger.beside(table, result):
        same = ledger.same(table, result)
        data = "the same data" if same else "other data, so no difference is taken"
        sentences.append(f"The paper: {table.source}, {dataset}, {data}, protocol not stated")
    else:
        sentences.append("The paper has no such table")
    if averaged := _averaged(table, result):
        sentences.append(f"{', '.join(averaged)}: the mean over folds, for no counts are kept")
    if made_by := result.get("made_by"):
        sentences.append(f"Made by commit {made_by}")
    for mark in sorted({run["rechecked"] for run in result["runs"] if "rechecked" in run}):
        sentences.append(f"{mark} runs were made again after a change of code, and are equal")
    return f"{'. '.join(sentences)}. Run ids as {own[0]['run_ids'][0]}."


def _protocol(image_labels: str | None, ignore: str | None) -> str:
    return str(Protocol(image_labels, ignore)) if image_labels else ZERO_SHOT


def _patches(result: Mapping) -> str:
    """ "train 390, val 65, test 130"; of several folds, how many there are and the ends of each."""
    folds = list(result["patches"].values())
    counts = {split: sorted(fold[split] for fold in folds) for split in folds[0]}
    shown = ", ".join(
        f"{split} {of[0]}" + f" to {of[-1]}" * (of[0] < of[-1]) for split, of in counts.items()
    )
    return f"{len(folds)} folds: {shown}" if len(folds) > 1 else shown


def _averaged(table: paper.Table, result: Mapping) -> list[str]:
    """Names of the metrics that some row could not pool over folds."""
    found = chain.from_iterable(
        seed.averaged
        for row in result["tables"].get(table.name, {})
        for seed in ledger.seeds_of(result, table.name, row)
    )
    return [_short(metric) for metric in dict.fromkeys(found)]


def _ours(table: paper.Table, result: Mapping, own: Sequence[Mapping]) -> Table:
    """The table of one result file; its name heads the first column, so that a copied table keeps
    it."""
    same, dataset = ledger.same(table, result), ledger.beside(table, result)
    oracle = any(e["image_labels"] == "oracle" for e in own)
    pairs = [(head(metric), f"paper {_short(metric)}") for metric in table.metrics]
    heads = [
        ledger.name(result),
        *(h for pair in pairs for h in pair[: 2 if dataset else 1]),
        *["ours - paper"] * same,
        *["oracle mIoU (%)"] * oracle,
        *("seeds", "hours", "run"),
    ]
    lines = []
    for row in ledger.row_names(table, result):
        mine = [e for e in own if e["row"] == row]
        main = {e["metric"]: e for e in mine if e["image_labels"] != "oracle"}
        line = [row]
        for metric in table.metrics:
            line.append(_mean(table, main.get(metric)))
            if dataset:
                line.append(_value(table, paper.value(table.name, row, dataset, metric)))
        if same:
            line.append(_gap(table, main.get(HEADLINE[table.unit])))
        if oracle:
            of_oracle = [e for e in mine if e["image_labels"] == "oracle"]
            line.append(_mean(table, next((e for e in of_oracle if e["metric"] == "miou"), None)))
        lines.append(line + _origin(table, result, row, mine))
    return Table(heads, lines, [_caption(table, result, own)])


def _gap(table: paper.Table, entry: Mapping | None) -> str:
    known = entry and entry["difference"] is not None
    return _signed(table, entry["difference"]) if known else ""


def _origin(table: paper.Table, result: Mapping, row: str, mine: Sequence[Mapping]) -> list[str]:
    """Seeds, hours and name of a row's run, with what its numbers lack."""
    if not mine:
        return ["", "", "not run"]
    lost = [e["note"] for e in mine if e["ours_mean"] is None]
    run = "; ".join([result["tables"][table.name][row], *lost[:1]])
    return [str(mine[0]["seeds"]), f"{mine[0]['hours']:.2f}", run]


def _claim(table: paper.Table, finding: Finding) -> str:
    claim = finding.claim
    over = f"{finding.rows[0]} over {finding.rows[1]}"
    if claim.ours:
        return f"{claim.text} ({over})"
    printed = f"the paper {_signed(table, finding.printed)} on {claim.dataset}"
    if finding.rows != (claim.better, claim.than):
        printed += f" with {claim.better} over {claim.than}"
    return f"{claim.text} ({over}; {printed})"


def _sentence(table: paper.Table, result: Mapping, finding: Finding) -> str:
    """One finding with everything it rests on, and the data set's name, so that it can be copied
    alone."""
    ours = finding.ours
    metric = finding.claim.metric
    points = f"{_short(metric)} points" if table.unit == "%" else _short(metric)
    said = [f"Ours {_signed(table, ours.difference)} {points}", _over_seeds(table, ours)]
    if finding.slides:
        said.append(_over_slides(table, result, finding))
    if finding.why:
        said.append(f"no interval over slides, for {finding.why}")
    if finding.given:
        given = finding.given
        span = "" if math.isnan(given.p) else f" {_interval(table, given.low, given.high)}"
        said.append(f"image labels given: {_signed(table, given.difference)}{span}")
    claim = _claim(table, finding)
    return f"{finding.verdict} on {ledger.name(result)}: {claim}. {'; '.join(said)}."


def _over_seeds(table: paper.Table, ours: compare.Paired) -> str:
    few = " (WARNING: too few)" * (ours.n < compare.FEW_SEEDS)
    seeds = f"over {ours.n} seed{'s' * (ours.n > 1)}{few}"
    if math.isnan(ours.p):
        return f"{seeds} no interval, for nothing varies"
    interval = _interval(table, ours.low, ours.high)
    return f"{seeds} {interval}, p = {ours.p:.2g}, d = {ours.d:.1f}"


def _over_slides(table: paper.Table, result: Mapping, finding: Finding) -> str:
    n, folds = finding.n_slides, len(result["folds"])
    resamples = compare.resamples(n)
    few = f" (WARNING: only {resamples} different resamples, too narrow)" * (n < compare.FEW_SLIDES)
    slides = f"over {n} slide{'s' * (n > 1)}" + f" in {folds} folds" * (folds > 1)
    return f"{slides}{few} {_interval(table, *finding.slides)}"


def _printed(table: paper.Table, dataset: str) -> list[Block]:
    """The paper's numbers on a data set that has not been run: one line for one metric, else a
    table."""
    values = [v for v in paper.VALUES if (v.table, v.dataset) == (table.name, dataset)]
    texts = [c.text for c in paper.CLAIMS if (c.table, c.dataset) == (table.name, dataset)]
    said = f"Conclusions of the paper on {dataset}, not run: {'; '.join(texts)}."
    claims = [Paragraph(said)] if texts else []
    source = f"Not run on {dataset}. The paper, {table.source}"
    if len(table.metrics) > 1:
        lines = [
            [row, *(_value(table, paper.value(table.name, row, dataset, m)) for m in table.metrics)]
            for row in dict.fromkeys(v.row for v in values)
        ]
        heads = [dataset, *(f"paper, {head(m)}" for m in table.metrics)]
        return [Table(heads, lines, [f"{source}:"]), *claims]
    sweeps: dict[str, list[str]] = {}
    for v in values:
        sweep, at = ledger.point(v.row)
        sweeps.setdefault(sweep, []).append(f"{at:g}: {_value(table, v)}")
    points = "; ".join(f"{sweep} {', '.join(found)}" for sweep, found in sweeps.items())
    return [Paragraph(f"{source}, {head(table.metrics[0])} at {points}."), *claims]


def _others() -> list[Block]:
    reruns = Table(
        ["PBIP run again by", "stage", "data set", "mIoU (%)", "IoU of the classes (%)", "note"],
        [
            [
                r.by,
                r.stage,
                r.dataset,
                f"{r.miou:.2f}",
                ", ".join(f"{v:.2f}" for v in r.iou),
                r.note,
            ]
            for r in paper.RERUNS
        ],
    )
    datasets = list(dict.fromkeys(dataset for peer in paper.PEERS for dataset in peer.miou))
    scores = [f"mIoU (%), {dataset}" for dataset in datasets]
    peers = Table(
        ["method", "year", "stages", *scores, "note", "backbone"],
        [
            [
                p.method,
                str(p.year),
                str(p.stages),
                *(_peer(p, d) for d in datasets),
                p.note,
                p.backbone,
            ]
            for p in paper.PEERS
        ],
        [
            "Peers, as their authors report them, in brackets as others ran them again; protocols "
            "differ, and oracle labels close absent classes."
        ],
    )
    return [reruns, peers]


def _peer(peer: paper.Peer, dataset: str) -> str:
    mean, again = peer.miou.get(dataset), peer.rerun.get(dataset)
    first = f"{mean:.2f}" if mean is not None else ""
    return first + (f" ({again:.2f})" if again is not None else "")


def _window(results: Sequence[Mapping]) -> Items:
    """Whether the full model's stage 1 lies where a faithful one should, on published data
    alone."""
    lines = []
    for dataset, (low, high) in paper.WINDOW.items():
        ours = [
            place
            for result in results
            if result["official"] and result["dataset"] == dataset
            for place in _placed(result, low, high)
        ]
        said = f"Ours: {'; '.join(ours)}" if ours else "Not run"
        lines.append(f"{dataset}: {low} to {high}. {said}.")
    return Items(lines)


def _placed(result: Mapping, low: float, high: float) -> Iterator[str]:
    """Our mean mIoU of the full model under each protocol, and where it lies."""
    seeds = ledger.seeds_of(result, "table2", ledger.RERUN["table2"][0])
    for protocol in seeds[0].scores if seeds else ():
        mean = 100 * float(np.mean([seed.scores[protocol]["miou"] for seed in seeds]))
        place = "inside" if low <= mean <= high else "below" if mean < low else "above"
        yield (
            f"{mean:.2f}, {place} (preset {result['preset']}, {protocol} image labels, "
            f"{len(seeds)} seed{'s' * (len(seeds) > 1)})"
        )


def _mean(table: paper.Table, entry: Mapping | None) -> str:
    return _number(table, entry["ours_mean"], entry["ours_std"]) if entry else ""


def _value(table: paper.Table, value: paper.Value | None) -> str:
    if value is None:
        return ""
    if table.read_off:
        ends = f" [{value.low:g}..{value.high:g}]" if value.low is not None else ""
        return f"{value.mean:g}{ends}"
    return _number(table, value.mean, value.std) + (" (typo?)" if "typo" in value.note else "")


def _number(table: paper.Table, mean: float | None, std: float | None = None) -> str:
    if mean is None:
        return ""
    of_mean, of_std = (2, 1) if table.unit == "%" else (3, 3)
    return f"{mean:.{of_mean}f}" + (f" ± {std:.{of_std}f}" if std is not None else "")


def _signed(table: paper.Table, difference: float) -> str:
    return f"{difference:+.{2 if table.unit == '%' else 3}f}"


def _interval(table: paper.Table, low: float, high: float) -> str:
    return f"{_signed(table, low)} to {_signed(table, high)}"
