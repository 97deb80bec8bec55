"""How many epochs a round takes."""

from typing import Any

import dask
import pytest

from skdtheano.runtime.pace import Pace


@pytest.mark.parametrize(
    ("wall", "epochs", "n_at_once"),
    [
        (0.06, [0.05], 4),  # 20 make a second, but the first epoch is no measure
        (0.21, [0.05] * 4, 16),
        (0.52, [0.05] * 10, 20),
        # 0.02 s beside the epochs, and 0.05 that the first one takes longer: 2.1 s
        (0.57, [0.1, *[0.05] * 9], 40),
        (0.9, [0.1] * 5, 20),  # 0.4 s beside the steps: two seconds for it, and not 12
        (9.0, [0.1] * 50, 40),  # as long as may be
        (3.0, [2.9], 1),  # an epoch that takes longer is a round
    ],
)
def test_a_round_takes_a_second_or_what_it_is_worth(
    wall: float, epochs: list[float], n_at_once: int
) -> None:
    pace = Pace(n_rows=1000)
    assert pace.n_at_once == 1
    pace.note(wall, epochs)
    assert pace.n_at_once == n_at_once


def test_a_fit_begins_at_the_pace_of_an_earlier_one_of_its_kind() -> None:
    for _ in range(2):
        Pace(1000, "kind").note(0.52, [0.05] * 10)
    assert Pace(1000, "kind").n_at_once == 20
    Pace(1000, "kind").note(0.06, [0.05])  # its last round was short: no reason to be slow
    assert Pace(1000, "kind").n_at_once == 20
    assert Pace(1000, "other kind").n_at_once == Pace(1000).n_at_once == 1
    assert Pace(999, "kind").n_at_once == 1
    with dask.config.set({"skdtheano.round-seconds": "10 ms"}):
        assert Pace(1000, "kind").n_at_once == 1


def test_row_numbers_of_a_round_are_bounded() -> None:
    pace = Pace(n_rows=2**20)
    pace.note(0.021, [0.02])
    assert pace.n_at_once == 2


def test_the_setting_makes_rounds_of_an_epoch() -> None:
    with dask.config.set({"skdtheano.round-seconds": "1 us"}):
        pace = Pace(n_rows=10)
    pace.note(0.003, [0.001])
    assert pace.n_at_once == 1


@pytest.mark.parametrize("given", ["often", 0, None])
def test_a_setting_that_is_no_time_is_refused(given: Any) -> None:
    with (
        dask.config.set({"skdtheano.round-seconds": given}),
        pytest.raises(ValueError, match=r"skdtheano\.round-seconds=.* is no time above 0"),
    ):
        Pace(n_rows=10)
