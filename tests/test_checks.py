"""What settings may be."""

import re

import pytest

from detectors.errors import InputError
from hsq_env.checks import check_known, check_share


def test_what_is_known_passes_and_the_rest_is_listed() -> None:
    check_known("reward", "size", {"paper": 1, "size": 2})
    with pytest.raises(InputError, match=re.escape("Unknown reward 'sizes': known are 'paper', 'size'.")):
        check_known("reward", "sizes", {"paper": 1, "size": 2})


@pytest.mark.parametrize("given", [0, 1, 0.5])
def test_shares_have_both_ends(given: float) -> None:
    check_share("alpha", given)


@pytest.mark.parametrize("given", [-1e-9, 1 + 1e-9, 2, -1, float("nan")])
def test_other_numbers_are_no_shares(given: float) -> None:
    with pytest.raises(InputError, match=re.escape(f"alpha is {given!r}: give a number from 0 to 1.")):
        check_share("alpha", given)
