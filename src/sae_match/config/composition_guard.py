"""What a composed configuration must not hold, refused before Hydra acts on it or writes it anywhere.

A configuration file from elsewhere could run anything through Hydra's own group (`hydra_group`), eat the machine with
aliases or interpolations that multiply (`bounded_yaml`, `bounded_resolution`), and Hydra writes `.hydra/` and
`multirun.yaml`, secrets included, before a job's own code gets a say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_match.config.bounded_resolution import bounded_resolution, resolved_where_possible
from sae_match.config.bounded_yaml import bounded_yaml
from sae_match.config.hydra_group import hydra_group_problems
from sae_match.config.interpolations import interpolation_problems
from sae_match.config.secrets import refuse_secrets
from sae_match.config.sweep_size import refuse_endless_sweep
from sae_match.errors import UserError

MAX_FILES = 1000
"""Entries that one composition may look up; the defaults of an ordinary one lead to some hundred."""
NOT_WRITTEN_BY_US = ("help", "hydra_help", "runtime", "overrides")
"""Parts of Hydra's group that hold paths of this machine and texts, or are looked at by themselves."""


class GuardedConfigLoader(ConfigLoaderImpl):
    """Hydra's loader, of which every configuration passes `check_composed`, within bounds of size and time.

    Launchers pickle the loader and compose each job's configuration once more, in another process or on another
    machine, where nothing else of ours runs before: the class goes along with it.
    """

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """As Hydra's.

        Raises:
            UserError: what is refused; whatever reading and composing raise, apart from Hydra's and OmegaConf's own.
        """
        with _clear_errors(), bounded_yaml(), bounded_resolution():
            cfg = super().load_configuration(*args, **kwargs)
            check_composed(cfg)
            # In any mode: Hydra composes once to learn the mode, and takes an error there for "a single run".
            refuse_endless_sweep(cfg)
        return cfg

    def compute_defaults_list(self, *args: Any, **kwargs: Any) -> Any:
        """As Hydra's (`--info defaults`), with the same bounds and errors."""
        with _clear_errors(), bounded_yaml(), bounded_resolution():
            return super().compute_defaults_list(*args, **kwargs)

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        load, count = repository.load_config, 0

        def load_config(config_path: str) -> Any:
            nonlocal count
            count += 1
            if count > MAX_FILES:
                raise UserError(
                    f"the defaults lists lead to more than {MAX_FILES} files, the last of them {config_path}"
                )
            return load(config_path)

        repository.load_config = load_config  # type: ignore[method-assign]
        return parsed, repository


@contextmanager
def guarded_composition(loader: type[GuardedConfigLoader] = GuardedConfigLoader) -> Iterator[None]:
    """Whatever Hydra composes, begun inside the block and in whichever process, passes `check_composed`."""
    original = hydra._internal.hydra.ConfigLoaderImpl  # type: ignore[attr-defined]
    # Hydra offers no hook between composing and acting: its callbacks are themselves instantiated from the result.
    hydra._internal.hydra.ConfigLoaderImpl = loader  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hydra._internal.hydra.ConfigLoaderImpl = original  # type: ignore[attr-defined]


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException):
        raise
    except RecursionError as error:
        raise UserError(
            "the configuration cannot be composed: it nests too deeply, or a file includes itself"
        ) from error
    except Exception as error:
        # YAML that does not parse (or names Python objects), files that are not UTF-8, overrides of absurd depth
        # or of a type that Hydra does not expect come out of it as they are.
        raise UserError(f"the configuration cannot be composed: {error or type(error).__name__}") from error


def check_composed(cfg: DictConfig) -> None:
    """Refuse entries that would run code, and secrets.

    Raises:
        UserError: naming the keys; the values of secrets are not repeated.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    group = plain.get("hydra") or {}
    overrides = group.pop("overrides", None) or {}
    problems = list(interpolation_problems(plain))
    if problems:
        raise UserError("\n".join(problems))
    resolved = resolved_where_possible(cfg)
    plain.pop("hydra", None)
    resolved_group = resolved.pop("hydra", {})
    problems.clear()
    problems += dict.fromkeys([*hydra_group_problems(group), *hydra_group_problems(resolved_group)])
    if problems:
        raise UserError(
            "the configuration names code to run, files to open or variables to set, which is refused:\n"
            + "\n".join(problems)
        )
    refuse_secrets(plain, [*(overrides.get("task") or []), *(overrides.get("hydra") or [])])
    for side in (group, resolved_group):
        refuse_secrets({"hydra": {key: value for key, value in side.items() if key not in NOT_WRITTEN_BY_US}})
    refuse_secrets(resolved)
