"""The figures of the ledger: what is drawn where, with which words."""

import statistics
from types import SimpleNamespace

import fake_results
import numpy as np
import pytest
from matplotlib.figure import Figure

from protolib import metrics
from protolib.study import figures, ledger, paper
from protolib.teach import viz

WORDS = (
    "ours on mosaic, not an official benchmark\nother data than the paper's: heights do not compare"
)


@pytest.fixture(scope="module")
def results(read):
    found = read(fake_results.result(), fake_results.result("bcss-wsss", True, preset="paper_text"))
    return {result["label"]: result for result in found}


def lines(ax) -> dict[str, dict[str, float]]:
    """{label: {tick: mIoU}} of the curves of a panel."""
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    return {
        curve.get_label(): {ticks[int(x)]: y for x, y in zip(*curve.lines[0].get_data())}
        for curve in ax.containers
    }


def bars(curve) -> list[list[float]]:
    """Lower and upper end of the error bars that a curve has."""
    return [segment[:, 1].tolist() for segment in curve.lines[2][0].get_segments() if len(segment)]


def test_the_papers_figure_4_alone():
    fig = figures.figure([], "figure4")
    [ax] = fig.axes
    assert lines(ax) == {
        "paper, bcss-wsss (bars: range of draws): random": {
            "0": 65.1,
            "5": 66.25,
            "50": 66.85,
            "100": 67.2,
            "200": 67.5,
            "500": 68.65,
            "1000": 69.15,
        },
        "paper, bcss-wsss: clustering": {"100": 69.6},
    }
    wanted = [[63.4, 69.1], [64.3, 69.5], [64.6, 69.5], [65, 69.4], [67.15, 69.4]]
    np.testing.assert_allclose(bars(ax.containers[0]), wanted, rtol=1e-12)
    assert bars(ax.containers[1]) == []
    assert (ax.get_title(), ax.get_ylabel()) == ("published data: the paper", "mIoU (%)")
    assert ax.get_xlabel() == "images per sub-class (values evenly spaced)"


def test_other_data_have_a_panel_that_says_so(results):
    first, second = figures.figure([results["mosaic"]], "figure4").axes
    assert first.get_title() == "published data: the paper" and second.get_title() == WORDS
    entries = {
        e["row"]: e for e in reversed(ledger.rows([results["mosaic"]])) if e["table"] == "figure4"
    }
    assert lines(second) == {
        "ours, mosaic, lean, 3 seeds (bars: std): random": {
            n: entries[f"random, {n} images"]["ours_mean"] for n in ("1", "8")
        },
        "ours, mosaic, lean, 3 seeds (bars: std): clustering": {
            n: entries[f"clustering, {n} images"]["ours_mean"] for n in ("8", "100")
        },
    }
    scores = [
        100 * c.scores["predicted"]["miou"]
        for c in ledger.seeds_of(results["mosaic"], "figure4", "clustering, 100 images")
    ]
    mean, std = statistics.mean(scores), statistics.stdev(scores)
    assert bars(second.containers[1])[1] == pytest.approx([mean - std, mean + std], rel=1e-12)
    assert (
        first.get_xlim() == second.get_xlim() == (-0.5, 8.5)
    )  # 0, 1, 5, 8, 50, 100, 200, 500, 1000


def test_the_same_data_share_the_papers_panel(results):
    fig = figures.figure(list(results.values()), "table4")
    first, second = fig.axes
    assert first.get_title() == "published data: the paper and ours"
    published = [
        f"paper, {name} (bars: std)" for name in ("bcss-wsss", "luad-histoseg", "gcss", "bcss")
    ]
    assert list(lines(first)) == [*published, "ours, bcss-wsss, paper_text, 3 seeds (bars: std)"]
    assert list(lines(second)) == ["ours, mosaic, lean, 3 seeds (bars: std)"]
    assert list(lines(first).values())[1] == {
        "1": 74.91,
        "2": 75.12,
        "3": 74.87,
        "4": 73.72,
        "5": 74.07,
    }
    looks = [
        (c.lines[0].get_color(), c.lines[0].get_marker(), c.lines[0].get_linestyle())
        for c in first.containers
    ]
    assert len({colour for colour, *_ in looks}) == len({marker for _, marker, _ in looks}) == 5
    assert {colour for colour, *_ in looks} <= set(viz.OKABE_ITO) and [
        look[2] for look in looks
    ] == ["--"] * 4 + ["-"]
    assert fig.get_suptitle() == "Table 4: Sub-classes per class (stage 1)"


def test_each_ratio_of_figure_3_has_a_column_and_blank_is_not_run(results):
    axes = figures.figure([results["mosaic"]], "figure3").axes
    assert [ax.get_xlabel() for ax in axes] == [
        r"$\beta / \alpha$ (values evenly spaced)",
        r"$\theta_2 / \theta_1$ (values evenly spaced)",
    ] * 2
    assert [list(found) for found in map(lines, axes)] == [
        ["paper, bcss-wsss"],
        ["paper, bcss-wsss"],
        ["ours, mosaic, lean, 3 seeds (bars: std)"],
        [],
    ]
    assert lines(axes[1])["paper, bcss-wsss"]["0.05"] == 64.6
    assert [text.get_text() for text in axes[3].texts] == ["not run"] and axes[
        3
    ].get_title() == WORDS
    assert list(lines(axes[2]).values())[0].keys() == {"0", "0.5", "1"}


@pytest.mark.filterwarnings("error")
def test_one_seed_has_no_bars_and_a_png_is_made_without_a_warning(tmp_path):
    fake_results.write(tmp_path, fake_results.result(seeds=[0]))
    fig = figures.figure(ledger.read(tmp_path), "figure4")
    assert list(lines(fig.axes[1])) == [
        "ours, mosaic, lean, 1 seed: random",
        "ours, mosaic, lean, 1 seed: clustering",
    ]
    assert figures.png(fig).startswith(b"\x89PNG\r\n")


def test_figures_are_those_of_one_metric_over_a_sweep():
    assert set(figures.PANELS) == {
        name for name, table in paper.TABLES.items() if table.metrics == ("miou",)
    }
    sweeps = {ledger.point(v.row)[0] for v in paper.VALUES if v.table in figures.PANELS}
    assert sweeps == {
        sweep for panels in figures.PANELS.values() for together in panels for sweep in together
    }
    with pytest.raises(
        ValueError, match="figure 'table2' is unknown; expected one of table4, figure3, figure4"
    ):
        figures.figure([], "table2")


def test_a_file_of_two_values_draws_no_panel(read):
    result = fake_results.result()
    few = result | {
        "label": "phantom",
        "tables": {
            "figure3": {"beta/alpha = 0": "pbip_stage1 beta=0.0", "beta/alpha = 0.5": "pbip_stage1"}
        },
    }
    titles = [ax.get_title() for ax in figures.figure(read(few, result), "figure3").axes]
    assert len(titles) == 4 and not any("phantom" in title for title in titles)


def test_a_training_is_drawn_on_the_band_of_its_reference():
    spec = SimpleNamespace(C=2, titles=("tumour", "stroma"))
    band = ledger.Band(
        (0, 1),
        np.array([[2.0, 1.0], [1.5, 0.5], [2.5, 1.5]]),
        np.full((3, 2, 2), 0.5) + np.array([0, -0.1, 0.1])[:, None, None],
    )
    fig = figures.history({"loss": [2.0, 1.2], "iou": [[0.25, 0.5], [0.75, None]]}, spec, band)
    loss, tumour, stroma = fig.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [
        [2.0, 1.0],
        [2.0, 1.2],
    ]  # mean of the reference, this run
    assert tumour.lines[1].get_ydata().tolist() == [25.0, 75.0] and np.isnan(
        stroma.lines[1].get_ydata()[1]
    )
    low, high = (f(tumour.collections[0].get_paths()[0].vertices[:, 1]) for f in (min, max))
    assert (low, high) == (pytest.approx(40), pytest.approx(60)) and tumour.get_ylim() == (0, 100)
    assert [ax.get_title() for ax in fig.axes] == [
        "loss",
        "tumour",
        "stroma",
    ] and loss.get_ylabel() == "loss (nats)"
    assert len(figures.history({"loss": [1.0], "iou": [[0.5, 0.5]]}, spec).axes[1].lines) == 1


# When matching helps


def when_result(read, val=lambda method, seed: 0.0, **more):
    """A result file with table `when`: two kinds of data, three methods, three seeds."""
    made = fake_results.result(**more)
    made["tables"] = made["tables"] | {"when": {}}
    for kind, shares in {"as it is": (50, 60, 70), "size 112": (40, 62, 58)}.items():
        for method, share in zip(("teacher", "student", "matching"), shares):
            name = f"{method} {kind}"
            made["tables"]["when"][f"{kind}, {method}"] = name
            for seed, fold in [(s, f) for s in (0, 1, 2) for f in made["folds"]]:
                slides = [f"{fold}S{i}" for i in range(6)]
                one = fake_results.run(name, share, seed, slides, fold)
                if method != "matching":
                    one["val"] = val(name, seed) + (len(fold) and int(fold[-1])) / 100
                made["runs"].append(one)
    return read(made)[0]


def val_of(name, seed):
    return {"teacher": 0.6, "student": 0.5}[name.split()[0]] - 0.01 * seed * ("teacher" in name)


@pytest.mark.parametrize("folds", [("",), ("F1", "F3")])
def test_a_case_is_teacher_minus_student_on_val_and_what_matching_adds_on_test(read, folds):
    result = when_result(read, val_of, folds=folds)
    found = {case.data: case for case in figures.cases(result)}
    assert list(found) == ["as it is", "size 112"]
    np.testing.assert_allclose(found["as it is"].lead, [10, 9, 8], rtol=0, atol=1e-9)
    for kind in found:
        gains = []
        for seed in (0, 1, 2):
            scores = []
            for method in ("matching", "student"):
                runs = fake_results.runs_of(result, f"{method} {kind}")
                own = [r for r in runs if r["seed"] == seed]
                counts = sum(s["predicted"]["matrix"] for r in own for s in r["slides"].values())
                scores.append(100 * metrics.scores(counts)["miou"])
            gains.append(scores[0] - scores[1])
        np.testing.assert_allclose(found[kind].gain, gains, rtol=0, atol=1e-9)


def test_the_map_has_a_point_for_each_kind_and_says_for_how_many_the_rule_holds(read):
    result = when_result(read, val_of)
    fig = figures.when([result, fake_results.result("bcss-wsss", True, preset="paper_text")])
    [ax] = fig.axes  # a file without the table has no panel
    cases = figures.cases(result)
    points = [curve.lines[0].get_xydata()[0] for curve in ax.containers]
    np.testing.assert_allclose(points, [[np.mean(c.lead), np.mean(c.gain)] for c in cases])
    assert [text.get_text() for text in ax.texts] == ["as it is", "size 112"]
    # the teacher leads in both; matching helps in one
    title = "mosaic, not an official benchmark, lean, 3 seeds\nthe signs agree for 1 of 2, beyond"
    beyond = all(np.mean(of) > np.std(of, ddof=1) for of in cases[0][1:])
    assert ax.get_title() == f"{title} the bars for {int(beyond)}"
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left <= -1 < 1 <= right and low <= -1 < 1 <= high  # 0 is inside


def test_cases_at_one_place_of_the_map_share_a_name():
    at = lambda name, x, y: figures.Case(name, [x], [y])
    ax = Figure().subplots()
    figures._map(ax, [at("dial 0", 4, 1), at("dial 1", 4.02, 1.01), at("size 112", -4, 1)])
    assert [text.get_text() for text in ax.texts] == ["dial 1\ndial 0", "size 112"]


def test_without_runs_the_map_says_so(read):
    assert figures.cases(read(fake_results.result())[0]) == []
    [ax] = figures.when([]).axes
    assert [text.get_text() for text in ax.texts] == ["not run"]


def test_a_seed_that_lacks_one_of_the_three_is_left_out(read):
    made = when_result(read, val_of)
    made["runs"] = [r for r in made["runs"] if (r["run"], r["seed"]) != ("student size 112", 1)]
    sizes = {case.data: len(case.lead) for case in figures.cases(made)}
    assert sizes == {"as it is": 3, "size 112": 2}
