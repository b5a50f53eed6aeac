"""Errors of Hydra, OmegaConf, launchers and memory in the words of this command: what is wrong, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

MIN_LIKENESS = 0.7
"""Of the last parts of two dotted keys, as `SequenceMatcher.ratio` measures it."""
_UNKNOWN = re.compile(r"Could not override '(.+)'")
_BAD_VALUE = re.compile(r"Error merging override (.+)", re.DOTALL)
_MISSING_LAUNCHER = re.compile(r"Could not find 'hydra/launcher/(\w+)'")
_SOURCE_OF = {
    "joblib": "pip install 'sae-match[joblib]'",
    "sae_match_slurm": "pip install 'sae-match[slurm]'",
    "submitit_local": "pip install 'sae-match[slurm]'",
    "ray": "in an environment of its own, as conf/launcher/ray.yaml says",
}
"""Hydra's launcher -> how to install what brings it."""


def explain_hydra_error(error: Exception) -> str:
    """The message for an error of composing or reading a configuration."""
    message, cause = str(error), error.__cause__ or error.__context__
    if (found := _MISSING_LAUNCHER.search(message)) and found[1] in _SOURCE_OF:
        return f"the launcher {found[1]} is not installed: {_SOURCE_OF[found[1]]} (launcher=local needs nothing)"
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override, message)
    if (found := _UNKNOWN.match(message)) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(found[1], cause)
    if found := _BAD_VALUE.match(message):
        key, _, value = found[1].splitlines()[0].partition("=")
        if (advice := not_by_name(key.lstrip("+"), value)) is not None:
            return advice
        if isinstance(cause, ValidationError):
            return _bad_value(found[1], cause)
    return message if cause is None else f"{message}\n{cause}"


def explain_crash(error: Exception) -> str | None:
    """What to do when memory ran out or a worker process died; None for any other error."""
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return f"{error}; a group takes the name of one of its options"
    name = type(error).__name__  # torch, joblib and submitit may not be imported, or not be installed
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        detail = str(error).splitlines()[0] if str(error) else "out of memory"
        advice = "Lower evaluation.batch_windows, shorten the layer span, or use device=cpu; finished work is kept."
        return f"{detail}\n{advice}"
    if name in ("TerminatedWorkerError", "BrokenProcessPool"):
        return (
            "a job's process was killed, most likely for memory, and joblib has ended the other jobs with it. Choose "
            "fewer hydra.launcher.n_jobs and launch again."
        )
    if name in ("UncompletedJobError", "FailedJobError"):
        return (
            f"{error}\nA job ended without a result (killed, out of memory or time); the others go on. See its log in "
            "<sweep>/.submitit/."
        )
    return None


def dotted_keys(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings, groups included: `layers`, `layers.first`."""
    for key, value in nested.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """` (did you mean layers.first?)`, or nothing where no known key has a similar last part."""

    def likeness(other: str) -> tuple[float, float]:
        last = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return last, SequenceMatcher(None, key, other).ratio()

    nearest = max(known, key=likeness, default="")
    return f" (did you mean {nearest}?)" if likeness(nearest)[0] >= MIN_LIKENESS else ""


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


def not_by_name(key: str, value: str) -> str | None:
    """The message for names where what they name is held: `evaluation.controls=random`; None for any other key."""
    if key == "evaluation.controls":
        names = "".join(value.strip("[]").split())
        return f"{key}={value}: the options of a group are chosen with a slash: 'evaluation/controls=[{names}]'"
    if key in ("evaluation.splices", "metrics"):
        return f"{key}={value}: takes entries of any name, added with a plus: +{key}.NAME._target_=my_package.MyClass"
    if key in ("datasets", "held_out"):
        return f"{key}={value}: takes texts of any name, each an option of the group: +dataset@{key}.NAME={value}"
    return None


def _bad_value(override: str, cause: ValidationError) -> str:
    key, _, value = override.partition("=")
    text = f"{override}: {str(cause).splitlines()[0]}"
    return f"{override}: a list has brackets: '{key}=[{value}]'" if "is not a ListConfig" in text else text
