"""The controller's multiplicative rule and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_match.errors import UserError
from sae_match.training.module import SparsityController, learning_rate_factor
from sae_match.training.options import TrainingConfig


def test_controller_step_by_hand() -> None:
    controller = SparsityController(target=10.0, gain=0.02, smoothing=0.5)
    controller.start(2.0)
    controller.update(14.0)  # running mean 12: 20 % above, so 0.4 of the gain
    assert controller.running_l0 == pytest.approx(12.0)
    assert controller.coefficient == pytest.approx(2.0 * math.exp(0.02 * 0.4))


@given(l0=st.floats(0.0, 1e4))
def test_controller_pushes_towards_the_target_by_at_most_its_gain(l0: float) -> None:
    controller = SparsityController(target=10.0, gain=0.02, smoothing=0.0)
    controller.start(1.0)
    controller.update(l0)
    change = math.log(controller.coefficient)
    assert abs(change) <= 0.02 + 1e-12
    assert math.copysign(1.0, change) == math.copysign(1.0, l0 - 10.0) or l0 == pytest.approx(10.0)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    factors = [learning_rate_factor(step, 100, 10, 0.5) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:51] == pytest.approx([1.0] * 41)
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)


def test_learning_rate_without_warm_up_or_decay_is_constant() -> None:
    assert {learning_rate_factor(step, 50, 0, 0.0) for step in range(50)} == {1.0}


@pytest.mark.parametrize("wrong", [{"beta1": 2.0}, {"topk_steps": -1}, {"lr": math.inf}, {"controller_gain": math.nan}])
def test_recipes_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"training\.{next(iter(wrong))}="):
        TrainingConfig(**wrong)
