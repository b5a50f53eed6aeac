"""What Hydra's own group may say: Hydra acts on it before a job's code gets a say.

It instantiates `_target_` entries (callbacks, launcher, sweeper), hands its logging group to
`logging.config.dictConfig`, which calls what `class` and `()` name and opens files, and sets environment variables.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from sae_match.config.interpolations import strings

PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
"""Where launchers and sweepers live that a `_target_` of Hydra's group may name."""
CALLBACKS = ("sae_match.sweep.launch.SweepCallback",)
HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler",
            "logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler",
            "logging.handlers.WatchedFileHandler", "colorlog.StreamHandler")  # fmt: skip
FORMATTERS = ("logging.Formatter", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_SUFFIX = ".log"
LOOKED_UP = ("filename", "format", "datefmt", "level")
"""Entries of a logging group that may be interpolations. Others could yield something else once a job has a number."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY",
             "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS",
             "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HOME", "WANDB_MODE", "WANDB_SILENT")  # fmt: skip
"""Variables that a configuration may set. GIT_CONFIG_*, LD_PRELOAD, PATH, PYTHON* and many more name code to run."""


def hydra_group_problems(hydra: Any) -> Iterator[str]:
    """A line for every entry of Hydra's group that names code to run, or a file that is no log.

    Args:
        hydra: nested dicts and lists, interpolations resolved where they can be, or not: both must pass.
    """
    for key, value in named(hydra, "_target_", "hydra."):
        if not _is_plugin(value):
            yield f"{key}={value}: only launchers and sweepers of {', '.join(PLUGINS)}* and {CALLBACKS[0]} may be named"
    if not isinstance(hydra, dict):
        return
    for group in ("job_logging", "hydra_logging"):
        yield from _logging_problems(hydra.get(group), f"hydra.{group}")
    job = hydra.get("job") or {}
    for name in [*(job.get("env_set") or {}), *(job.get("env_copy") or [])]:
        if name not in VARIABLES:
            yield f"hydra.job: the variable {name} must be set in the shell; here only {', '.join(VARIABLES)}"


def named(value: Any, wanted: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every entry called `wanted`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        if key == wanted:
            yield f"{prefix}{key}", entry
        yield from named(entry, wanted, f"{prefix}{key}.")


def _is_plugin(target: Any) -> bool:
    """Whether it names our callback, or a launcher or sweeper that is defined there: nothing that a module imports."""
    if target in CALLBACKS:
        return True
    if not isinstance(target, str) or not target.startswith(PLUGINS):
        return False
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return False
    return inspect.isclass(found) and issubclass(found, Launcher | Sweeper | Callback) and found.__module__ == module


def _logging_problems(group: Any, prefix: str) -> Iterator[str]:
    allowed = {"handlers": HANDLERS, "formatters": FORMATTERS}
    for section, content in group.items() if isinstance(group, dict) else ():
        for wanted in ("class", "()"):
            for key, value in named(content, wanted, f"{prefix}.{section}."):
                if value not in allowed.get(section, ()):
                    names = ", ".join(allowed.get(section, ("nothing",)))
                    yield f"{key}={value}: of {section} only {names} may be named"
    for key, value in strings(group, prefix):
        if "://" in value and value not in STREAMS:
            yield f"{key}={value}: only {', '.join(STREAMS)} may be named"
    for key, value in strings(group, prefix):
        if "${" in value and key.rpartition(".")[2] not in LOOKED_UP:
            yield f"{key}={value}: must be written out; only {', '.join(LOOKED_UP)} may be looked up here"
    for key, value in named(group, "filename", f"{prefix}."):
        if not (isinstance(value, str) and value.endswith(LOG_SUFFIX)):
            yield f"{key}={value}: the name of a log file ends in {LOG_SUFFIX}"
