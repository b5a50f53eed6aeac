"""Hydra's and OmegaConf's errors in the words of this command: what is wrong, and what to type instead."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

from sae_match.app.known_keys import did_you_mean, dotted_keys
from sae_match.sweep.launch import missing_plugin

_UNKNOWN = re.compile(r"Could not override '(.+)'")
_BAD_VALUE = re.compile(r"Error merging override (.+)", re.DOTALL)


def explain_hydra_error(error: Exception) -> str:
    """The message for an error of composing or reading a configuration."""
    message, cause = str(error), error.__cause__ or error.__context__
    if (advice := missing_plugin(message)) is not None:
        return advice
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override, message)
    if (found := _UNKNOWN.match(message)) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(found[1], cause)
    if (found := _BAD_VALUE.match(message)) and isinstance(cause, ValidationError):
        return _bad_value(found[1], cause)
    return message if cause is None else f"{message}\n{cause}"


def _unparsed(override: str, message: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: an argument is a key and a value, key=value"
    if value.startswith("[") or not re.search(r"[{}()=:,\s]", value) or re.search(r"['\"]", value):
        return f"{override}: {message}"
    return f"{override}: a value with such characters is quoted twice, for the shell and for Hydra: '{key}=\"{value}\"'"


def _unknown_key(key: str, cause: Any) -> str:
    parent = cause.parent_node
    if not isinstance(parent, DictConfig):
        return f"unknown configuration key: {key}"
    prefix = cause.full_key.removesuffix(str(cause.key))
    plain: Any = OmegaConf.to_container(parent, resolve=False)
    if not key.startswith("hydra"):
        plain.pop("hydra", None)
    text = f"unknown configuration key: {key}{did_you_mean(key, dotted_keys(plain, prefix))}"
    if OmegaConf.get_type(parent) is dict and "_target_" not in plain and prefix:
        text += f". {prefix.removesuffix('.')} takes entries of any name, added with a plus: +{key}=VALUE"
    return text


def _bad_value(override: str, cause: ValidationError) -> str:
    key, _, value = override.partition("=")
    text = f"{override}: {str(cause).splitlines()[0]}"
    if "is not a ListConfig" in text:
        return f"{override}: a list has brackets: '{key}=[{value}]'"
    return text
