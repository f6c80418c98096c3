import pytest

from vlm.errors import ConfigError
from vlm.training import CosineSchedule


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    schedule = CosineSchedule(warmup_steps=4, final_lr_fraction=0.0)
    assert [schedule.lr_fraction(step, 20) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_from_the_peak_to_the_final_fraction() -> None:
    schedule = CosineSchedule(warmup_steps=0, final_lr_fraction=0.1)
    values = [schedule.lr_fraction(step, 100) for step in range(101)]
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_warm_up_longer_than_the_run_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=100 .* trainer\.max_steps=100"):
        CosineSchedule(warmup_steps=100, final_lr_fraction=0.0).check(100)
