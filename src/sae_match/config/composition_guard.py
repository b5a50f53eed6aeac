"""What a composed configuration must not hold, refused before Hydra acts on it or writes it anywhere.

Hydra instantiates `_target_` entries of its own group (callbacks, launcher, sweeper) and hands its logging group to
`logging.config.dictConfig`, which calls what `class` and `()` name: a configuration file from elsewhere could run
anything. It also writes `.hydra/` and `multirun.yaml` before a job's own code gets a say.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_match.config.secrets import refuse_secrets
from sae_match.errors import UserError

PACKAGES = ("hydra._internal.core_plugins.", "hydra_plugins.", "sae_match.")
"""Where the classes live that a `_target_` of Hydra's group may name: launchers, sweepers and our own callbacks."""
LOGGING = ("logging.", "colorlog.")
"""Where handlers and formatters live that a logging group may name."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


@contextmanager
def guarded_composition() -> Iterator[None]:
    """Inside the block every configuration that Hydra composes, of a sweep or of a job, passes `check_composed`.

    Whatever else reading and composing raise becomes a UserError.
    """
    compose = ConfigLoaderImpl.load_configuration

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        try:
            cfg = compose(self, *args, **kwargs)
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:
            # YAML that does not parse (or names Python objects), files that are not UTF-8, overrides of absurd depth
            # or of a type that Hydra does not expect come out of it as they are.
            raise UserError(f"the configuration cannot be composed: {error or type(error).__name__}") from error
        check_composed(cfg)
        return cfg

    # Hydra offers no hook between composing and acting: its callbacks are themselves instantiated from the result.
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


def check_composed(cfg: DictConfig) -> None:
    """Refuse entries that would run code, and secrets.

    Raises:
        UserError: naming the keys; the values of secrets are not repeated.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    hydra = plain.pop("hydra", {}) if isinstance(plain, dict) else {}
    problems = [f"{key}: nothing here is instantiated, so _target_ is refused" for key, _ in _named(plain, "_target_")]
    problems += [
        f"hydra.{key}={value}: only launchers, sweepers and callbacks of {', '.join(PACKAGES)}* may be named"
        for key, value in _named(hydra, "_target_")
        if not _is_allowed(value)
    ]
    for group in ("job_logging", "hydra_logging"):
        problems += _logging_problems(hydra.get(group), f"hydra.{group}.")
    if problems:
        raise UserError("the configuration names code to run, which is refused:\n" + "\n".join(problems))
    refuse_secrets(plain, (hydra.get("overrides") or {}).get("task") or [])


def _named(value: Any, wanted: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every entry called `wanted`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        if key == wanted:
            yield f"{prefix}{key}", entry
        yield from _named(entry, wanted, f"{prefix}{key}.")


def _is_allowed(target: Any) -> bool:
    """Whether it names a class that is defined in one of our packages: not a function, nor what a module imports."""
    if not isinstance(target, str) or not target.startswith(PACKAGES):
        return False
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return False
    return inspect.isclass(found) and found.__module__ == module


def _logging_problems(group: Any, prefix: str) -> Iterator[str]:
    for wanted in ("class", "()"):
        for key, value in _named(group, wanted):
            if not (isinstance(value, str) and value.startswith(LOGGING)) or value.count(".") > 2:
                yield f"{prefix}{key}={value}: only handlers and formatters of {', '.join(LOGGING)}* may be named"
    for key, value in _strings(group, prefix):
        if "ext://" in value and value not in STREAMS:
            yield f"{key}={value}: only {', '.join(STREAMS)} may be named"


def _strings(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        if isinstance(entry, str):
            yield f"{prefix}{key}", entry
        yield from _strings(entry, f"{prefix}{key}.")
