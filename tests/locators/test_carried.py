"""What a threshold from few records can promise, against draws of such records."""

import numpy as np
import pytest

from hidecmoe_jax.locators.calibrate import carried, threshold


@pytest.mark.parametrize(("records", "share"), [(7, 0.05), (40, 0.01), (300, 0.01), (200, 0.1)])
def test_the_lost_share_lies_in_its_interval_as_often_as_it_says(records, share):
    promise = carried(records, share)
    draws = np.random.default_rng(0).uniform(size=(4000, records))
    # Of uniform scores the share below a threshold is the threshold.
    lost = np.array([threshold(scores, share) for scores in draws])
    assert np.mean(lost) == pytest.approx(promise.expected, rel=0.05)
    inside = np.mean((lost >= promise.low) & (lost <= promise.high))
    assert inside == pytest.approx(0.9, abs=0.02)


def test_few_records_say_what_they_can_carry_and_enough_of_them_say_nothing_of_it():
    few = carried(7, 0.05)
    assert not few.is_carried and few.expected == pytest.approx(1 / 8)
    assert "7 records cannot carry 5 %" in str(few) and "12 %" in str(few) and "19 records would" in str(few)
    enough = carried(300, 0.01)
    assert enough.is_carried and str(enough).startswith(
        "300 records, loses 1.3 % of its own (90 % interval 0.46 to 2.6 %".replace("0.46 to", "0.46 % to")
    )
    assert "no held-out records" in str(carried(0, 0.01))
