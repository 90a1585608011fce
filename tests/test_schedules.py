import pytest

from vaelib import schedules


def test_linear_warmup_ends_and_stays():
    beta = schedules.linear_warmup(4, final=2.0)
    assert [beta(step) for step in (0, 1, 4, 5)] == [0.0, 0.5, 2.0, 2.0]


def test_cosine_goes_either_way():
    falling = schedules.cosine(10, initial=1.0, final=0.0)
    assert falling(0) == 1.0
    assert falling(5) == pytest.approx(0.5)
    assert falling(10) == falling(99) == 0.0


def test_cyclical_repeats():
    beta = schedules.cyclical(10, final=1.0, rise=0.5)
    assert [beta(step) for step in (0, 5, 9, 10, 15)] == [0.0, 1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: schedules.constant("x"), "`value` must be a number"),
        (lambda: schedules.linear_warmup(0), "`steps` must be >= 1"),
        (lambda: schedules.cosine(0), "`steps` must be >= 1"),
        (lambda: schedules.cyclical(0), "`period` must be >= 1"),
        (lambda: schedules.cyclical(5, rise=0.0), "`rise` must be > 0 and <= 1"),
    ],
)
def test_wrong_arguments(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()
