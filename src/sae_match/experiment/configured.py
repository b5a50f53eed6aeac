"""The splices and controls of a configuration as objects: the one place where their names are looked up."""

from __future__ import annotations

from sae_match.config.controls import Control as Name
from sae_match.config.schema import Config
from sae_match.evaluation.controls import CONTROLS, Control, ControlSetup
from sae_match.evaluation.quantile_splice import Quantiles
from sae_match.evaluation.splices import Splice
from sae_match.evaluation.standard_splices import STANDARD
from sae_match.experiment.estimates import problem_width


def controls(cfg: Config) -> tuple[Control, ...]:
    """The controls that a configuration names, in their fixed order; `all` stands for every one."""
    named = cfg.evaluation.controls
    return CONTROLS if Name.all in named else tuple(control for control in CONTROLS if control.name in named)


def splices(cfg: Config) -> tuple[Splice, ...]:
    """Every splice of an adjacent pair: the standard ones, quantiles, and those of controls."""
    quantiles = tuple(cfg.evaluation.quantiles)
    chosen = (*STANDARD, Quantiles(quantiles=quantiles)) if quantiles else STANDARD
    return (*chosen, *(splice for control in controls(cfg) for splice in control.splices()))


def fitted(cfg: Config) -> list[str]:
    """Names of the controls and splices that need text to be fitted on."""
    from_controls = [control.name for control in controls(cfg) if control.fitted]
    return list(dict.fromkeys(from_controls + [splice.name for splice in splices(cfg) if splice.fitted]))


def control_setup(cfg: Config, d_model: int, device: str = "cpu") -> ControlSetup:
    """What the job's controls share."""
    return ControlSetup(
        memory_limit_gib=cfg.solver.memory_limit_gib,
        problem_width=problem_width(cfg.matching.metric, d_model),
        seed=cfg.seed,
        device=device,
        batch_windows=cfg.evaluation.batch_windows,
        sink_positions=cfg.model.sink_positions,
    )
