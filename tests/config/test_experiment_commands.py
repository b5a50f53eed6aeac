"""Every command line that an experiment file names composes into jobs that break no rule."""

from __future__ import annotations

import pytest

from sae_match.rules import check_config
from sae_match.study import Study
from tests.config.test_configuration import composed
from tests.experiments import EXPERIMENTS, commands, jobs

FIGURES = [name for name in EXPERIMENTS if name.startswith("fig")]


def configurations(arguments: list[str]) -> list[Study]:
    """Jobs of a command line that have every swept value between them; pair after pair of a model, the ends only."""
    found = jobs(arguments)
    if len({override for job in found for override in job if override.startswith("layers.pair=")}) > 1:
        return [composed(*found[0]), composed(*found[-1])]
    seen: set[str] = set()
    kept = []
    for job in found:
        if not seen.issuperset(job):
            seen.update(job)
            kept.append(job)
    return [composed(*job) for job in kept]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_commands_in_the_comments_compose(experiment: str) -> None:
    named = commands(experiment)
    assert named, "the file names no command"
    for arguments in named:
        assert f"experiment={experiment}" in arguments
        found = configurations(arguments)
        for number, cfg in enumerate(found):
            check_config(cfg)
            assert cfg not in found[:number], "a swept value changes nothing"


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
