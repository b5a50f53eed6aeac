"""Console command `sae-match-train`: the same configuration system, for training SAEs."""

from __future__ import annotations

import logging

import hydra
from omegaconf import DictConfig

from sae_match.app.build import build, register_schemas
from sae_match.app.main import run_command
from sae_match.app.trust import check_trust
from sae_match.files import config_directory
from sae_match.rules import check_train_config
from sae_match.terminal import quiet_libraries, quiet_when_unread
from sae_match.training.options import TrainConfig

logger = logging.getLogger(__name__)


def job(cfg: DictConfig) -> None:
    """Hydra's task function: check, train, log one line per layer."""
    check_trust(cfg)
    checked = build(cfg, TrainConfig)
    check_train_config(checked)
    quiet_libraries(checked.progress)
    from sae_match.training.run import run_training

    for entry in run_training(checked):
        logger.info("layer %(layer)s: L0 %(held_out_l0).1f, FVU %(held_out_fvu).3f, dead %(dead_fraction).2f", entry)


@quiet_when_unread
def main() -> None:
    """Entry point of `sae-match-train`."""
    register_schemas()
    run_command(hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="train")(job))


if __name__ == "__main__":
    main()
