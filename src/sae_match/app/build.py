"""From a composed Hydra configuration to the objects of a job; what reads these knows no type of Hydra's."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from sae_match.app.errors import did_you_mean, dotted_keys, not_by_name
from sae_match.errors import UserError
from sae_match.study import Capture, Composition, Layers, Paths, Rerun, Study
from sae_match.training.options import TrainConfig, TrainingConfig

T = TypeVar("T", Study, TrainConfig)


@dataclasses.dataclass
class Schema:
    """The composed form of `Study`; what is `Any` is built from its `_target_`."""

    matching: Any = MISSING
    folding: Any = MISSING
    solver: Any = MISSING
    sae: Any = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    pairs: Any = MISSING
    evaluation: Any = MISSING
    judging: Any = MISSING
    tracking: Any = MISSING
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: Layers = MISSING
    capture: Capture = dataclasses.field(default_factory=Capture)
    composition: Composition = dataclasses.field(default_factory=Composition)
    paths: Paths = MISSING
    device: str = "auto"
    seed: int = 0
    progress: bool | None = None
    dry_run: bool = False
    rerun: Rerun = Rerun.failed
    objective: str | None = None
    trusted_packages: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class TrainSchema:
    """The composed form of `TrainConfig`; what is `Any` is built from its `_target_`."""

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    model: Any = MISSING
    tracking: Any = MISSING
    datasets: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: Layers = MISSING
    paths: Paths = MISSING
    seed: int = 0
    device: str = "auto"
    progress: bool | None = None
    trusted_packages: list[str] = dataclasses.field(default_factory=list)


SCHEMAS: dict[type, type] = {Study: Schema, TrainConfig: TrainSchema}


def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra as `schema` and `train_schema`; calling twice is harmless."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Schema)
    store.store(name="train_schema", node=TrainSchema)


def build(cfg: DictConfig, kind: type[T], check: Callable[[DictConfig], None] | None = None) -> T:
    """The objects of a job: all interpolations resolved, every group's `_target_` built.

    Args:
        check: is given the resolved values before any class is imported, and may refuse them.

    Raises:
        UserError: a key that nothing knows (also one added with + or ++), a missing value, a value of the wrong type or
            out of its range, or two that choose `layers`; the message names every such key.
    """
    schema = SCHEMAS[kind]
    try:
        given: Any = OmegaConf.to_container(cfg, resolve=False)
        unknown = unknown_keys(given, schema)
        if unknown:
            known = [key for key in dotted_keys(given) if key not in unknown]
            named = ", ".join(f"{key}{did_you_mean(key, known)}" for key in unknown)
            raise UserError(
                f"unknown configuration key{'s' if len(unknown) > 1 else ''}: {named}. "
                "`sae-match --cfg job` prints the keys that exist."
            )
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"configuration values not set: {', '.join(missing)}")
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        OmegaConf.resolve(merged)
        if not isinstance(merged, DictConfig):
            raise UserError("the configuration is not a mapping")
        for key in ("evaluation.controls", "evaluation.splices"):
            if isinstance(value := OmegaConf.select(merged, key), str):
                raise UserError(str(not_by_name(key, value)))
        if check is not None:
            check(_with_span(merged))
        config = kind(**_build(merged))
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {error}") from error
    plain = OmegaConf.to_container(merged, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    config.config = {str(name): _recorded(getattr(config, str(name)), value) for name, value in plain.items()}
    return expand_pair(config, given)


def _build(merged: DictConfig) -> dict[str, Any]:
    """Every group as an object; what is wrong with any of them is said at once."""
    built: dict[str, Any] = {}
    problems: list[str] = []
    for name in merged:
        node = merged._get_node(name)
        assert isinstance(name, str)
        if not OmegaConf.is_config(node):
            built[name] = merged[name]
        elif not _has_target(OmegaConf.to_container(node)):
            built[name] = OmegaConf.to_object(node)
        else:
            try:
                built[name] = instantiate(node, _convert_="all")
            except InstantiationException as error:
                problems += _explain(name, error)
    if problems:
        raise UserError("\n".join(problems))
    return built


def _has_target(plain: Any) -> bool:
    if isinstance(plain, Mapping):
        return "_target_" in plain or any(_has_target(value) for value in plain.values())
    return isinstance(plain, list) and any(_has_target(value) for value in plain)


def _explain(group: str, error: InstantiationException) -> Iterator[str]:
    """What the constructor of an option said, in the configuration's words."""
    # Hydra's message ends with the key of the node that could not be built.
    place = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else group
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        message = str(cause) if isinstance(cause, UserError) else str(error).splitlines()[0]
        yield message if message.startswith(f"{place}.") else f"{place}: {message}"
        return
    for one in cause.errors():
        key = ".".join([place, *(str(part) for part in one["loc"])])
        message = one["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if one["type"] == "unexpected_keyword_argument":
            yield f"unknown configuration key: {key}"
        elif one["type"] == "missing_argument" or one["type"] == "missing":
            yield f"configuration values not set: {key}"
        elif one["type"] == "list_type":
            yield f"{key}={one['input']}: a list has brackets: '{key}=[{one['input']}]'"
        elif not one["loc"]:
            yield message if message.startswith(place) else f"{place}: {message}"
        else:
            yield f"{key}={one['input']}: {message}"


def _recorded(value: Any, plain: Any) -> Any:
    """The plain form of a group with the arguments that it leaves to their defaults."""
    if isinstance(plain, dict) and "_target_" in plain and not dataclasses.is_dataclass(value):
        return plain  # a class of the user's that does not say what its arguments are
    if isinstance(plain, dict) and "_target_" in plain:
        known = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        arguments = {
            name: _recorded(own, plain[name]) if name in plain else to_jsonable_python(own)
            for name, own in known.items()
        }
        return {"_target_": plain["_target_"], **arguments}
    if isinstance(plain, dict) and isinstance(value, dict):
        return {str(key): _recorded(value[key], item) for key, item in plain.items()}
    return to_jsonable_python(value)


def expand_pair(config: T, given: Any) -> T:
    """The configuration with the `first` and `last` that `layers.pair` or `layers.list` stands for: one name for one
    job, so that a list without gaps is a span.

    Args:
        given: nested mappings before interpolation. The defaults of first and last refer to what the SAEs cover, so
            numbers there are the user's.

    Raises:
        UserError: `first` or `last` is given as well (of a list, others than its ends), or both short forms are.
    """
    stands_for = _stands_for(config.layers)
    if not stands_for:
        return config
    chosen = given["layers"]
    numbers = {name: chosen.get(name) for name in ("first", "last") if isinstance(chosen.get(name), int)}
    if config.layers.list:  # its ends may be said as well, as they are in a record
        numbers = {name: number for name, number in numbers.items() if number != stands_for[name]}
    numbers |= {name: chosen[name] for name in ("pair", "list") if chosen.get(name) is not None}
    if len(numbers) > 1:
        names = " and ".join(f"layers.{name}={value}" for name, value in reversed(numbers.items()))
        raise UserError(f"{names} both choose layers; give one of them")
    layers = Layers(**stands_for)
    return dataclasses.replace(config, layers=layers, config=config.config | {"layers": dataclasses.asdict(layers)})


def _stands_for(layers: Any) -> dict[str, Any]:
    """All keys of `layers` where a short form is given, else nothing."""
    chosen = layers.list if layers.pair is None else [layers.pair, layers.pair + 1]
    if not chosen:
        return {}
    gaps = list(chosen) != list(range(chosen[0], chosen[-1] + 1))
    return {"first": chosen[0], "last": chosen[-1], "pair": None, "list": list(chosen) if gaps else None}


def _with_span(merged: DictConfig) -> DictConfig:
    """The values with the `first` and `last` that a short form stands for."""
    stands_for = _stands_for(merged.layers)
    return OmegaConf.merge(merged, {"layers": stands_for}) if stands_for else merged  # type: ignore[return-value]


def unknown_keys(value: Any, kind: Any, prefix: str = "") -> list[str]:
    """Dotted names in nested `value` that the dataclass `kind` has no field for."""
    if not isinstance(value, dict):
        return []
    if typing.get_origin(kind) is dict:
        _, item = typing.get_args(kind)
        return [name for k, v in value.items() for name in unknown_keys(v, item, f"{prefix}{k}.")]
    if not dataclasses.is_dataclass(kind) or not inspect.isclass(kind):
        return []
    hints = typing.get_type_hints(kind)
    found: list[str] = []
    for key, item_value in value.items():
        if key not in hints:
            found.append(f"{prefix}{key}")
        else:
            found += unknown_keys(item_value, hints[key], f"{prefix}{key}.")
    return found
