"""From a composed Hydra configuration to a checked dataclass."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_match.config.known_keys import did_you_mean, dotted_keys
from sae_match.config.schema import Config, LayersConfig
from sae_match.config.training_schema import TrainConfig
from sae_match.errors import UserError

T = TypeVar("T", Config, TrainConfig)


def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra as `schema` and `train_schema`; calling twice is harmless."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="train_schema", node=TrainConfig)


def config_directory() -> Path:
    """The folder of YAML groups: inside the installed package, or `conf/` of a source checkout.

    Raises:
        UserError: neither exists, which means a broken installation.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(f"the configuration folder is missing beside {package}; reinstall sae_match")


def to_dataclass(cfg: DictConfig, kind: type[T]) -> T:
    """The configuration as an instance of its schema class, all interpolations resolved.

    Raises:
        UserError: a key that the schema does not know (also one added with + or ++), a missing value, a value of the
            wrong type, or `layers.pair` beside `first` or `last`; the message names the key.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=False)
        unknown = unknown_keys(plain, kind)
        if unknown:
            schema: Any = OmegaConf.to_container(OmegaConf.structured(kind))
            known = list(dotted_keys(schema))
            named = ", ".join(f"{key}{did_you_mean(key, known)}" for key in unknown)
            raise UserError(
                f"unknown configuration key{'s' if len(unknown) > 1 else ''}: {named}. "
                "`sae-match --cfg job` prints the keys that exist."
            )
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"configuration values not set: {', '.join(missing)}")
        merged = OmegaConf.merge(OmegaConf.structured(kind), cfg)
        OmegaConf.resolve(merged)
        result: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {error}") from error
    if not isinstance(result, kind):
        raise UserError(f"configuration does not form a {kind.__name__}")
    return expand_pair(result, plain)


def expand_pair(config: T, given: Any) -> T:
    """The configuration with `layers.pair` replaced by the `first` and `last` that it stands for: one name for one job.

    Args:
        given: nested mappings before interpolation. The defaults of first and last refer to what the SAEs cover, so
            numbers there are the user's.

    Raises:
        UserError: `first` or `last` is given as well.
    """
    pair = config.layers.pair
    if pair is None:
        return config
    numbers = {name: given["layers"][name] for name in ("first", "last") if isinstance(given["layers"][name], int)}
    if numbers:
        names = " and ".join(f"layers.{name}={value}" for name, value in numbers.items())
        raise UserError(f"layers.pair={pair} and {names} both choose layers; give one of them")
    return dataclasses.replace(config, layers=LayersConfig(first=pair, last=pair + 1))


def unknown_keys(value: Any, kind: Any, prefix: str = "") -> list[str]:
    """Dotted names in nested `value` that the dataclass `kind` has no field for."""
    if not isinstance(value, dict):
        return []
    if typing.get_origin(kind) is dict:
        _, item = typing.get_args(kind)
        return [name for k, v in value.items() for name in unknown_keys(v, item, f"{prefix}{k}.")]
    if not dataclasses.is_dataclass(kind):
        return []
    hints = typing.get_type_hints(kind)
    found: list[str] = []
    for key, item_value in value.items():
        if key not in hints:
            found.append(f"{prefix}{key}")
        else:
            found += unknown_keys(item_value, hints[key], f"{prefix}{key}.")
    return found
