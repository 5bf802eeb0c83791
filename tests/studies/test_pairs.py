"""Which pairs of tasks are shown first, and which are marked."""

from hidecmoe_jax.studies.task_overlap import _descending, _reaches


def test_the_most_confused_pair_comes_first_and_of_equal_ones_the_most_similar():
    pairs = [(10.0, 0.2), (30.0, None), (10.0, 0.9), (None, 1.0)]
    rows = [{"mixed": mixed, "cosine": cosine} for mixed, cosine in pairs]
    ordered = [(row["mixed"], row["cosine"]) for row in sorted(rows, key=_descending)]
    assert ordered == [(30.0, None), (10.0, 0.9), (10.0, 0.2), (None, 1.0)]


def test_a_limit_is_reached_by_its_own_value_and_never_by_nothing():
    assert _reaches(25.0, 25.0) and _reaches(26.0, 25.0)
    assert not _reaches(24.9, 25.0) and not _reaches(None, 0.0)
