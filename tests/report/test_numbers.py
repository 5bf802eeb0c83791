"""Numbers as reports print them."""

import pytest

from hidecmoe_jax.report.numbers import number, operations, signed, size


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0, 2, "0.00"), (-0.004, 2, "0.00"), (-0.006, 2, "−0.01"), (1234.5, 1, "1,234.5"), (-1e6, 0, "−1,000,000")],
)
def test_a_number(value, digits, text):
    assert number(value, digits) == text


@pytest.mark.parametrize(("value", "text"), [(0.004, "0.00"), (0.006, "+0.01"), (-0.5, "−0.50"), (0, "0.00")])
def test_a_difference(value, text):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1000, "1.0 kB"), (1_000_000, "1.0 MB"), (13_500_000_000, "13.5 GB")]
)
def test_a_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("count", "text"), [(999_999, "999999"), (1_000_000, "1 M"), (123_456_000_000, "123.5 G")])
def test_operations(count, text):
    assert operations(count) == text
