"""A fixed slice of tests/fuzz.py: what broke once, and some thousand cases of each kind."""

import fuzz
import pytest


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return fuzz.kinds(tmp_path_factory.mktemp("fuzz"))


KINDS = (
    "labels names toml registry matrix manifest cut lock results ledger archives".split()  # all
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_ends_in_an_error_of_another(kinds, kind):
    assert list(kinds) == KINDS
    cases = round(10_000 * kinds[kind].share)
    refused, findings = fuzz.fuzz(kinds[kind], cases, f"0/{kind}")
    assert findings == {} and refused > cases / 10
