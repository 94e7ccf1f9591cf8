"""Damaged states and files load as what they were or are one kind of error; see damage.py."""

import damage
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(2))
def test_damaged_states_are_an_error_or_load_as_what_they_were(tmp_path, seed):
    outcomes, failures = damage.run(100, seed, tmp_path)
    assert failures == []
    assert outcomes["tensor: bytes", "the same"] > 0
    assert outcomes["tensor: bytes", "an error"] > 0
