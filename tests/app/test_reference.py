"""The committed reference of the configuration is the one that the classes and option files give, and misses no key."""

from __future__ import annotations

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sae_match.app.build import register_schemas
from sae_match.app.errors import dotted_keys
from sae_match.files import config_directory
from tests.app.reference import PAGE, reference


def test_the_committed_page_is_fresh() -> None:
    page = (config_directory() / PAGE).read_text(encoding="utf-8")
    assert page == reference(config_directory()), "run: python -m tests.app.reference"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sae=saelens", "model=hub", "dataset=hub", "solver=soft", "judging=endpoint"],
        ["sae=gemma_scope_2b", "model=local", "dataset=local", "judging=offline", "evaluation=weights_only"],
    ],
)
def test_every_composed_key_is_on_it(overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides), resolve=False)
    known = set(re.findall(r"^\| `([\w.]+)` \|", reference(config_directory()), flags=re.M))
    keys = [key for key in dotted_keys(plain) if "_target_" not in key and not key.startswith("evaluation.controls.")]
    parents = {key.rpartition(".")[0] for key in keys}
    missing = [key for key in keys if key not in known and key not in parents]
    assert len(keys) > 50 and not missing
