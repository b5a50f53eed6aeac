"""The experiment files under conf/: their jobs, and the command lines that their comments name."""

from __future__ import annotations

import re
import shlex
from functools import cache

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sae_match.files import config_directory

EXPERIMENTS = sorted(path.stem for path in (config_directory() / "experiment").glob("*.yaml"))


def commands(experiment: str) -> list[list[str]]:
    """The arguments of every `sae-match` command in the file's comments; a line that ends with a backslash goes on."""
    text = (config_directory() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    comments = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    lines = re.sub(r"\\\n", " ", comments).splitlines()
    found = [re.sub(r"  +\(.*\)$", "", line) for line in lines if line.startswith("sae-match ")]
    return [shlex.split(line)[1:] for line in found]


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of every job that a command line starts: Hydra's own sweep over its values and the file's."""
    return [list(job) for job in _jobs(tuple(arguments))]


@cache
def _jobs(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    params: object = {}
    for name in (argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")):
        # No file of an experiment includes another's: what it sweeps over stands in it.
        file = OmegaConf.load(config_directory() / "experiment" / f"{name}.yaml")
        params = OmegaConf.to_container(OmegaConf.select(file, "hydra.sweeper.params", default=OmegaConf.create({})))
    assert isinstance(params, dict)
    swept = [f"{key}={value}" for key, value in params.items()]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*swept, *arguments]), None)
    return tuple(tuple(job) for job in batch)
