"""The log of a job in its record, wherever else its messages go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = "sae_match.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # as in conf/hydra/job_logging/sae_match.yaml


@contextmanager
def logged_into(directory: Path) -> Iterator[None]:
    """Add what is logged inside the block to sae_match.log in `directory`, unless the command's own log is that file:
    Hydra's is in hydra.run.dir, and paths.output_dir may be another directory."""
    path, root = directory / LOG, logging.getLogger()
    if any(isinstance(own, logging.FileHandler) and Path(own.baseFilename) == path.absolute() for own in root.handlers):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
