"""Hydra's composition, made once for the options that tests choose; values are put into a copy of it.

Composing takes a fifth of a second, values a tenth of that. `tests/config/test_configuration.py` compares the two.
"""

from __future__ import annotations

import copy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from sae_match.app.build import register_schemas
from sae_match.files import config_directory


def composed(*overrides: str, name: str = "config") -> DictConfig:
    """What `hydra.compose` makes of these overrides."""
    words = [_parsed(override) for override in overrides]
    cfg = copy.deepcopy(_of_options(name, tuple(word.input_line for word in words if _chooses_option(word))))
    ConfigLoaderImpl._apply_overrides_to_config([word for word in words if not _chooses_option(word)], cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@cache
def _of_options(name: str, choices: tuple[str, ...]) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return compose(name, list(choices), return_hydra_config=True)


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _chooses_option(word: Override) -> bool:
    """Whether Hydra reads an override before it composes, and not as a value afterwards."""
    group = word.key_or_group
    if group == "hydra.searchpath":
        return True
    return (config_directory() / group).is_dir() and not isinstance(word.value(), dict)
