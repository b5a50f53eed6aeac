"""Every command line that an experiment file names composes into jobs that break no rule."""

from __future__ import annotations

import pytest

from sae_match.rules import check_config
from sae_match.study import Study
from tests.config.test_configuration import composed
from tests.experiments import EXPERIMENTS, commands, jobs

FIGURES = [name for name in EXPERIMENTS if name.startswith("fig")]


def configurations(arguments: list[str]) -> list[Study]:
    """The jobs of a command line; of more than ten (pair after pair of a model) the first and the last.

    Of a bare `experiment=NAME` the first job only: test_experiment_files runs them all.
    """
    found = jobs(arguments)
    if len(arguments) == 1:
        found = found[:1]
    return [composed(*job) for job in (found if len(found) <= 10 else [found[0], found[-1]])]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_commands_in_the_comments_compose(experiment: str) -> None:
    named = commands(experiment)
    assert named, "the file names no command"
    for arguments in named:
        assert f"experiment={experiment}" in arguments
        for cfg in configurations(arguments):
            check_config(cfg)


@pytest.mark.parametrize("experiment", FIGURES)
def test_a_figure_states_the_papers_setting(experiment: str) -> None:
    """At least one command names Gemma Scope 2B at width 16k, and the paper's text where text is read."""
    found = [cfg for arguments in commands(experiment) for cfg in configurations(arguments)]
    gemma = [cfg for cfg in found if cfg.sae.name == "gemma_scope_2b" and cfg.sae.width == "16k"]
    assert gemma
    for cfg in gemma:
        assert cfg.sae.l0 not in (None, "canonical")
        if cfg.evaluation.level.value == "full":
            assert cfg.model.name == "gemma_2_2b"
            assert (cfg.dataset.documents, cfg.dataset.window_tokens) == (100, 1024)


def test_every_figure_of_the_paper_has_its_file() -> None:
    numbers = [1, 3, 4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18]
    assert sorted(int(name.split("_")[0].removeprefix("fig")) for name in FIGURES) == numbers


def test_a_sweep_on_the_command_line_takes_the_place_of_the_files() -> None:
    arguments = next(words for words in commands("fig10_pruning_by_dataset") if "sae=gemma_scope_2b" in words)
    assert [cfg.dataset.name for cfg in configurations(arguments)] == ["openwebtext", "github_code", "wikitext"]
    five = next(words for words in commands("fig14_sparsity") if "sae=gemma_scope_2b" in words)
    assert [cfg.sae.l0 for cfg in configurations(five)] == ["22/22", "38/38", "71/70", "139/139", "294/301"]
