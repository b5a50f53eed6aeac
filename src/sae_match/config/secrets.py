"""Keys and passwords in a configuration, found before the configuration is written into a record, a log or W&B."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_match.config.interpolations import strings
from sae_match.errors import UserError

PATH_KEYS = ("paths.output_dir", "paths.cache_dir", "root", "path", "neuronpedia")
"""Keys (or their last part) that may be taken from the environment, since they say where things are."""
KEY_VARIABLE = "judging.api_key_variable"

_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_LOOKS_LIKE_ONE = re.compile(
    r"(?<![A-Za-z0-9])(sk-[\w-]{12,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|wandb_v1_\w{16,})"
)
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_VARIABLE = re.compile(r"(?=[A-Za-z_])(?![A-Za-z0-9]{24,}$)[A-Za-z0-9_]+")
"""A variable's name; two dozen letters and digits without an underscore are a key."""
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)")
_SHORTEST = 8
"""Shorter values of secret variables may occur anywhere by chance."""


def refuse_secrets(plain: Any, overrides: Iterable[str] = ()) -> None:
    """Refuse a configuration that would carry a secret into what is written.

    Args:
        plain: nested dicts and lists, interpolations resolved or not.
        overrides: the command line's, which Hydra keeps beside the configuration.

    Raises:
        UserError: naming the keys, never the values.
    """
    known = {name: value for name, value in os.environ.items() if _is_secret(name, value)}
    problems = [problem for key, text in strings(plain) for problem in _problems(key, text, known)]
    for override in overrides:
        key, _, text = str(override).partition("=")
        problems += _problems(key.lstrip("+~"), text.strip("'\""), known)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _is_secret(name: str, value: str) -> bool:
    where = name.upper().endswith(("_PATH", "_FILE", "_DIR", "_DIRECTORY"))
    return _NAME.search(name) is not None and not where and len(value) >= _SHORTEST


def _problems(key: str, text: str, known: Mapping[str, str]) -> Iterator[str]:
    advice = "Secrets come from the environment only; judging.api_key_variable names the variable that holds one"
    named = key == KEY_VARIABLE and not text.startswith("${") and text not in ("", "null")
    if named and any(not _VARIABLE.fullmatch(part.strip(" '\"")) for part in text.split(",")):
        yield (
            f"{key}: must be the name of an environment variable (letters, digits, _), not a key; it would be "
            "written into the record"
        )
        return
    if _LOOKS_LIKE_ONE.search(text):
        yield f"{key}: looks like a key or token, which would be written into the record. {advice}"
    elif _PASSWORD_IN_URL.search(text):
        yield f"{key}: an address with a password in it, which would be written into the record. {advice}"
    for name, value in known.items():
        if value in text:
            yield f"{key}: holds the value of the environment variable {name}, which would be recorded. {advice}"
    for name in (found.strip("'\"") for found in _ENVIRONMENT.findall(text)):
        if "$" in name or _NAME.search(name) or not _is_path(key):
            yield (
                f"{key}: ${{oc.env:{name}}} would write that variable's value into the record. Only paths "
                f"({', '.join(PATH_KEYS)}) may come from the environment, and never from a variable named like a secret"
            )


def _is_path(key: str) -> bool:
    return key in PATH_KEYS or key.rpartition(".")[2] in PATH_KEYS or key.startswith("hydra.")
