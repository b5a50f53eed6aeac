"""What a configuration must not name or hold: classes of packages that the user does not trust, and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from sae_match.errors import UserError
from sae_match.terminal import fail

OWN_PACKAGE = "sae_match"
TRUSTED = "trusted_packages"
MIN_SECRET_CHARS = 16
"""Shorter values of secret environment variables may occur in a configuration by chance."""

_SECRET_VARIABLE = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$")
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(sk-[\w-]{32,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{20,}|AIza[\w-]{35}|wandb_v1_\w{30,})"
)
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")


class SecretsCallback(Callback):
    """Hydra writes the composed configuration to disk before a job begins: one with a secret in it ends the command."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check the configuration of a single job."""
        self._check(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the configuration of a sweep, the values that it takes included."""
        self._check(config)

    def _check(self, config: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(config, resolve=False)
        overrides = plain["hydra"].pop("overrides")
        plain["hydra"]["job"].pop("override_dirname", None)  # the overrides once more, in one text
        given = (override.partition("=") for override in [*overrides["task"], *overrides["hydra"]])
        problems = secrets_in(plain) + secrets_in({key.lstrip("+"): value.strip("'\"") for key, _, value in given})
        if problems:
            fail("\n".join(dict.fromkeys(problems)))  # Hydra turns a callback's exceptions into warnings


def check_trust(cfg: DictConfig) -> None:
    """Refuse a job's configuration that names a class of a package that is not trusted, or holds a secret.

    Args:
        cfg: composed, without Hydra's own group.

    Raises:
        UserError: naming the keys, never the values of secrets.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    packages = (OWN_PACKAGE, *plain.get(TRUSTED, ()))
    targets = [(key, text) for key, text in _leaves(plain) if key.rpartition(".")[2] == "_target_"]
    problems = [problem for key, text in targets if (problem := _target_problem(key, text, packages))]
    if problems := problems + secrets_in(plain):
        raise UserError("\n".join(problems))


def _target_problem(key: str, target: str, packages: tuple[str, ...]) -> str | None:
    package = next((name for name in packages if target.startswith(f"{name}.")), None)
    if package is None:
        root = target.partition(".")[0]
        return f"{key}={target} is not of sae_match. To trust the package {root}, add '{TRUSTED}=[{root}]'"
    if package != OWN_PACKAGE:
        return None
    try:
        found = get_object(target)
    except (ImportError, ValueError) as error:
        return f"{key}={target}: {error}"
    # Our modules import others: sae_match.files.os.remove is not ours.
    ours = str(getattr(found, "__module__", "")).partition(".")[0] == OWN_PACKAGE
    return None if ours else f"{key}={target}: sae_match defines nothing of that name"


def secrets_in(plain: Any) -> list[str]:
    """A line for every value of nested dicts and lists that looks like a key, or is the value of an environment
    variable that is named like one; the values are not repeated."""
    variables = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name.upper())]
    known = [value for value in variables if len(value) >= MIN_SECRET_CHARS]
    found = []
    for key, text in _leaves(plain):
        looks = _SECRET.search(text) and not _is_path(text)
        if looks or _PASSWORD_IN_URL.search(text) or any(value in text for value in known):
            found.append(
                f"{key}: looks like a key or password, which would be written into the record. Secrets come from the "
                "environment; judging.api_key_variable names the variable that holds one"
            )
    return found


def _is_path(text: str) -> bool:
    return os.path.exists(text) or ("/" in text and "://" not in text)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every string."""
    if isinstance(value, str):
        yield prefix, value
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from _leaves(entry, f"{prefix}.{key}" if prefix else str(key))
