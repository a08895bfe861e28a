"""Presets refuse what no kernel knows, before work starts."""

import re
from dataclasses import fields, replace

import pytest

from protolib import presets
from protolib.data import phantom

TEXT = {"text_share": 0.6, "normalise": "none", "look": "masked_image", "threshold": "map"}


def test_presets_by_name_and_their_sizes():
    assert list(presets.PRESETS) == [
        "quick",
        "masked_image",
        "smoke",
        "lean",
        "recommended",
        "paper_text",
        "released_code",
        "lpd",
        "sshr",
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
    known = "quick, masked_image, smoke, lean, recommended, paper_text, released_code"
    with pytest.raises(ValueError, match=f"preset 'quik' is not known; choose one of {known}"):
        presets.preset("quik")


def test_a_preset_may_be_asked_for_with_another_encoder_backbone_or_K():
    quick = presets.PRESETS["quick"]
    assert presets.preset("quick") == quick
    found = presets.preset("quick", "swin_test", "resnet18", 5)
    assert found == replace(quick, encoder="swin_test", backbone="resnet18", K=5)
    assert presets.preset("quick", K=2) == replace(quick, K=2)


def test_masked_images_are_the_paper_s_matching_loss_and_nothing_else():
    quick, paper = presets.PRESETS["quick"], presets.PRESETS["masked_image"]
    mine = replace(quick, backbone="resnet18", K=7, epochs=9, shrinkage=2.0, tau=0.9)
    found = presets.with_masked_images(mine)
    for field in fields(presets.Preset):
        source = paper if field.name in presets.MATCHING else mine
        assert getattr(found, field.name) == getattr(source, field.name), field.name
    # so the preset of that name is what quick becomes, but for its name
    assert presets.with_masked_images(quick) == replace(paper, name="quick")
    changes = {
        f.name
        for f in fields(presets.Preset)
        if getattr(quick, f.name) != getattr(paper, f.name) and f.name != "name"
    }
    # what the table of masked_image changes is part of what is copied: no field is forgotten
    assert changes and changes <= set(presets.MATCHING)


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
        ({"K": 0}, "preset quick: K = 0; give 1 to 100"),
        ({"tau": 0.0}, "tau = 0.0; give 1e-06 to 1e\\+06"),
        ({"size": -1}, "size = -1; give 16 to 4096"),
        ({"epochs": 0}, "epochs = 0; give 1 to 1e\\+06"),
        ({"white_limit": 1.5}, "white_limit = 1.5; give 0 to 1"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1; give 0 to 1e\\+06"),
        ({"look": "masked_pooling", "span": "raw"}, "raw logits cannot weigh features"),
        (
            {"look": "positions", "pairs": "subclasses"},
            "positions learn classes; choose pairs = 'classes'",
        ),
        ({"K": 1, "pairs": "subclasses"}, "with K = 1 no sub-class is above the mean of its class"),
        (
            {"similarity": "convolution", "pairs": "subclasses"},
            "a convolution has no sub-classes; choose pairs = 'classes'",
        ),
        ({"diffusion": 4}, "diffusion = 4 has no middle; give an odd number, or 0"),
        ({"drawn_pure": 1.1}, "drawn_pure = 1.1; give 0 to 1"),
        ({"drawn_never_pure": 12}, "drawn_never_pure = 12; give -1 to 11"),
        ({"text_share": 0.6}, "text_share = 0.6 blends .* normalise = 'wccn' leaves it"),
        (
            {"text_share": 0.6, "normalise": "none"},
            "look = 'masked_pooling' leaves it; choose 'masked_image', or text_share = 0",
        ),
        (
            TEXT | {"prototypes": "learnable"},
            "prototypes = 'learnable' leaves it; choose 'nearest_mean' or 'random_mean' or",
        ),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(presets.PRESETS["quick"], **change)


@pytest.mark.parametrize(
    "field, value, what",
    [
        ("K", 2.5, "a whole number"),
        ("K", True, "a whole number"),
        ("K", "3", "a whole number"),
        ("K", None, "a whole number"),
        ("epochs", 4.0, "a whole number"),
        ("tau", float("nan"), "a finite number"),
        ("beta", float("inf"), "a finite number"),
        ("beta", True, "a finite number"),
        ("alpha", "1", "a finite number"),
        ("bias", 1, "true or false"),
        ("encoder", 3, "a text"),
        ("patches", (1, 2), "a list, as list[int, int, int]"),
        ("levels", [2, 3, 4], "a list, as list[int, ...]"),
        ("levels", (2, 3.0, 4), "a list, as list[int, ...]"),
        ("fusion", (0.3, 0.3, float("nan")), "a list, as list[float, ...]"),
        ("scaling", ((0.5, 0.5, 0.5), 1.0), "a list, as list[list[float, ...], ...]"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_to_give(field, value, what):
    wanted = f"preset quick: {field} = {value!r}; give {what}"
    with pytest.raises(ValueError, match=re.escape(wanted) + "$"):
        replace(presets.PRESETS["quick"], **{field: value})


def test_a_whole_number_is_a_number():
    assert replace(presets.PRESETS["quick"], tau=1, fusion=(1, 0, 0)).tau == 1


def test_a_changed_preset_is_checked_and_holds_tuples():
    made = presets.changed(presets.PRESETS["quick"], {"beta": 0.1, "levels": [1, 2, 3]})
    assert made == replace(presets.PRESETS["quick"], beta=0.1, levels=(1, 2, 3))
    for unknown in ("betta", "name"):
        with pytest.raises(
            ValueError,
            match=f"a preset has no field {unknown} to change; it has size, patches, drawn",
        ):
            presets.changed(made, {unknown: 1})
    with pytest.raises(ValueError, match="delta = 2"):
        presets.changed(made, {"delta": 2})


def test_what_is_known_of_lpd_s_release_and_of_sshr():
    lpd, sshr = presets.PRESETS["lpd"], presets.PRESETS["sshr"]
    assert (lpd.K, lpd.beta, lpd.matching_after) == (3, 0.1, 3000)
    assert (lpd.diversity, lpd.diversity_after, lpd.prototypes) == (0.5, 3000, "learnable")
    assert (sshr.refine, sshr.similarity, sshr.beta) == ("gates", "convolution", 0)
    assert (sshr.level_weights, sorted(sshr.fusion)) == ((0.1, 0.15, 0.25, 0.5), [0, 0.2, 0.2, 0.6])


def test_nothing_that_came_after_the_paper_is_on_unless_asked_for():
    off = {"refine": "none", "diffusion": 0, "text_share": 0.0, "matching_after": 0}
    for name, p in presets.PRESETS.items():
        if name not in ("lpd", "sshr"):
            assert {field: getattr(p, field) for field in off} == off, name
        assert p.diffusion == p.text_share == 0
        dials = phantom.Drawing(1)
        assert p.drawn_heterogeneity == dials.heterogeneity and p.drawn_pure == dials.pure
        assert p.drawn_similarity == dials.similarity and p.drawn_together == dials.together
        assert p.drawn_never_pure == dials.never_pure
