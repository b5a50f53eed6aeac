"""Whole numbers beyond 64 bits, found by fuzzing (`solver.max_iterations` of 400 digits was an OverflowError)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hydra import compose, initialize_config_dir

from sae_match import UserError
from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.number_rules import number_rules
from sae_match.config.rules import check_config, check_train_config
from sae_match.config.schema import Config
from sae_match.config.training_schema import TrainConfig


@dataclass
class Inner:
    count: int = 0
    numbers: list[int] = field(default_factory=list)


@dataclass
class Outer:
    inner: Inner
    named: dict[str, Inner]


def test_where_it_looks() -> None:
    inner = Inner(2**63 - 1, [1, -(2**63)])
    found = list(number_rules(Outer(inner, {"a": Inner(2**63)})))
    assert [line.partition(":")[0] for line in found] == ["inner.numbers", "named.a.count"]
    assert "64 bits" in found[0]


@pytest.mark.parametrize("key", ["solver.max_iterations", "seed", "evaluation.batch_windows", "layers.last"])
def test_a_job(key: str) -> None:
    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = to_dataclass(compose("config", ["paths.output_dir=out", f"{key}={'9' * 400}"]), Config)
    with pytest.raises(UserError, match=f"^{key}: a whole number of 1329 bits"):
        check_config(cfg)


def test_training() -> None:
    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = to_dataclass(compose("train", ["paths.output_dir=out", f"training.tokens={'9' * 400}"]), TrainConfig)
    with pytest.raises(UserError, match=r"^training\.tokens: a whole number"):
        check_train_config(cfg)
