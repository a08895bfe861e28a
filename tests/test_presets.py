"""Presets refuse what no kernel knows, before work starts."""

from dataclasses import replace

import pytest

from protolib import presets


def test_presets_by_name_and_their_sizes():
    assert {name: p.name for name, p in presets.PRESETS.items()} == {"quick": "quick", "smoke": "smoke"}
    assert all(p.size % 16 == 0 and p.K == 3 for p in presets.PRESETS.values())


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="preset 'quik' is not known; choose one of quick, smoke"):
        presets.preset("quik")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"merge": "max"}, "merge = 'max'; choose mean or softmax"),
        ({"fill": "white"}, "fill = 'white'; choose black or mean"),
        ({"prototypes": "median"}, "prototypes = 'median'; choose nearest_mean or centre"),
        ({"delta": 1.0}, "give 0 < delta < 1"),
        ({"levels": (3, 4)}, "2 levels need as many fusion weights, not 3"),
        ({"K": 0}, "all must be positive"),
        ({"tau": 0.0}, "all must be positive"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(presets.QUICK, **change)
