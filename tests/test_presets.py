"""Presets refuse what no kernel knows, before work starts."""

from dataclasses import fields, replace

import pytest

from protolib import presets


def test_presets_by_name_and_their_sizes():
    assert list(presets.PRESETS) == [
        "quick",
        "smoke",
        "lean",
        "recommended",
        "paper_text",
        "released_code",
        "lpd",
    ]
    assert all(p.name == name and p.size % 16 == 0 for name, p in presets.PRESETS.items())


def test_every_field_of_every_preset_names_its_source():
    wanted = {f.name for f in fields(presets.Preset)} - {"name"}
    for name, sources in presets.SOURCES.items():
        assert set(sources) == wanted and all(len(s) > 2 for s in sources.values()), name


@pytest.mark.parametrize(
    "table, message",
    [
        ({"delta": 0.15}, "without source \\['delta'\\]"),
        ({"delta": [0.15, ""]}, "without source \\['delta'\\]"),
        ({"dleta": [0.15, "Sec. 4.1"]}, "unknown \\['dleta'\\]"),
    ],
)
def test_a_field_without_a_source_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        presets._read(presets.TABLES | {"mine": table | {"like": "quick"}})


def test_a_preset_has_the_values_of_the_one_that_it_is_like_but_for_its_own():
    mine, sources = presets._read(
        presets.TABLES | {"mine": {"like": "released_code", "delta": [0.2, "mine"]}}
    )["mine"]
    assert mine == replace(presets.PRESETS["released_code"], name="mine", delta=0.2)
    assert sources == presets.SOURCES["released_code"] | {"delta": "mine"}


def test_what_the_paper_says_and_what_the_code_does_differ_in_these_values():
    paper, code = presets.PRESETS["paper_text"], presets.PRESETS["released_code"]
    facts = {
        "delta": (0.15, 0.5),
        "tau": (1.0, 0.07),
        "lr": (1e-5, 5e-5),
        "weight_decay": (3e-3, 1e-3),
        "epochs": (10, 8),
        "batch": (10, 10),
        "beta": (0.5, 0.1),
        "theta_bg": (0.5, 1.0),
        "prototypes": ("nearest_mean", "centre"),
        "level_weights": ((1.0, 1.0, 1.0), (0.0, 0.1, 1.0, 1.0)),
        "K": (3, 3),
        "alpha": (1.0, 1.0),
        "theta_fg": (1.0, 1.0),
    }
    assert {name: (getattr(paper, name), getattr(code, name)) for name in facts} == facts


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(
        ValueError,
        match="preset 'quik' is not known; choose one of quick, smoke, lean, recommended, paper_text, released_code, lpd",
    ):
        presets.preset("quik")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"merge": "max"}, "merge = 'max'; choose mean or softmax"),
        ({"fill": "white"}, "fill = 'white'; choose black or mean or minmax"),
        (
            {"prototypes": "median"},
            "prototypes = 'median'; choose nearest_mean or random_mean or centre or learnable",
        ),
        ({"delta": 1.0}, "give 0 < delta < 1"),
        ({"levels": (3, 4)}, "2 levels need as many weights, not 3"),
        ({"K": 0}, "all must be positive"),
        ({"tau": 0.0}, "all must be positive"),
        ({"K": 1, "pairs": "subclasses"}, "with K = 1 no sub-class is above the mean of its class"),
        (
            {"similarity": "convolution", "pairs": "subclasses"},
            "a convolution has no sub-classes; choose pairs = 'classes'",
        ),
        ({"prototypes": "learnable"}, "learnable prototypes have no images to match; set beta = 0"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(presets.PRESETS["quick"], **change)


def test_a_changed_preset_is_checked_and_holds_tuples():
    made = presets.changed(presets.PRESETS["quick"], {"beta": 0.1, "levels": [1, 2, 3]})
    assert made == replace(presets.PRESETS["quick"], beta=0.1, levels=(1, 2, 3))
    for unknown in ("betta", "name"):
        with pytest.raises(
            ValueError,
            match=f"a preset has no field {unknown} to change; it has size, patches, order",
        ):
            presets.changed(made, {unknown: 1})
    with pytest.raises(ValueError, match="delta = 2"):
        presets.changed(made, {"delta": 2})
