"""What Hydra's own group may say: Hydra acts on it before a job's code gets a say.

It instantiates `_target_` entries (callbacks, launcher, sweeper), hands its logging group to
`logging.config.dictConfig`, which calls what `class` and `()` name and opens files, and sets environment variables.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
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
VARIABLES = ("SAE_MATCH_CACHE", "TMPDIR", "OMP_NUM_THREADS", "OMP_PROC_BIND", "MKL_NUM_THREADS",
             "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
             "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
             "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY",
             "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HOME",
             "HF_HUB_CACHE", "HF_DATASETS_CACHE", "WANDB_MODE", "WANDB_SILENT")  # fmt: skip
"""Variables that a configuration may set. GIT_CONFIG_*, LD_PRELOAD, PATH, PYTHON* and many more name code to run."""

SHELL = "hydra.launcher.setup"
"""Lines of shell that run before a job, by design."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


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
    yield from _one_line_problems(hydra)
    for group in ("job_logging", "hydra_logging"):
        yield from _logging_problems(hydra.get(group), f"hydra.{group}")
    job = hydra.get("job") or {}
    for name in [*(job.get("env_set") or {}), *(job.get("env_copy") or [])]:
        if name not in VARIABLES:
            yield f"hydra.job: the variable {name} must be set in the shell; here only {', '.join(VARIABLES)}"


def _one_line_problems(hydra: Mapping[str, Any]) -> Iterator[str]:
    """Launchers write their settings, and the names and directories of jobs, into shell scripts: a second line there
    would be a command."""
    job, sweep = (hydra.get(name) or {} for name in ("job", "sweep"))
    written = [
        *strings(hydra.get("launcher"), "hydra.launcher"),
        ("hydra.job.name", job.get("name")),
        ("hydra.sweep.dir", sweep.get("dir")),
        ("hydra.sweep.subdir", sweep.get("subdir")),
    ]
    for key, value in written:
        shell = key == SHELL or key.startswith(f"{SHELL}.")
        if isinstance(value, str) and not shell and _CONTROL.search(value):
            yield f"{key}: a value of several lines, or with control characters; only {SHELL} has lines"


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
