"""The files of a record, and files of others in a directory that a job would take for one."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ..errors import UserError
from .documents import DOCUMENTS
from .labels import LABELS
from .state import STATUS

CONFIG, TEXT = "config.yaml", "text.json"
METRICS, PAIRS = "metrics.json", "pairs.csv"
FEATURES, PATHS, JUDGEMENTS = "features.parquet", "paths.parquet", "judgements.jsonl"
TOP_TOKENS = "top_tokens.parquet"
TRACEBACK = "error.log"
PERMUTATIONS, FIGURES = "permutations", "figures"
RESULTS = (METRICS, PAIRS, LABELS, FEATURES, DOCUMENTS, PATHS, TOP_TOKENS, JUDGEMENTS, TRACEBACK)
"""Files that a new attempt removes."""
_WRITTEN = {CONFIG, STATUS, TEXT, PERMUTATIONS, FIGURES, *RESULTS}
_CONFIG_KEYS = {"matching", "folding", "solver", "sae", "layers", "paths"}


def holds_record(directory: Path) -> bool:
    """Whether a readable status.json or config.yaml in the directory is one that a job wrote."""
    try:
        status = json.loads((directory / STATUS).read_text(encoding="utf-8"))
        if isinstance(status, dict) and {"state", "process"} <= status.keys():
            return True
    except (OSError, ValueError):
        pass
    try:
        config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and config.keys() >= _CONFIG_KEYS


def refuse_foreign_files(directory: Path) -> None:
    """Refuse a directory with files that a job would replace and no record vouches for.

    Anything else may lie there: Hydra's and W&B's folders, logs, a lock, what the user's own callbacks write.

    Raises:
        UserError: naming the files.
    """
    if not directory.is_dir() or holds_record(directory):
        return
    foreign = sorted(path.name for path in directory.iterdir() if path.name in _WRITTEN)
    if foreign:
        raise UserError(
            f"{directory} holds files but no record of a job ({', '.join(foreign)}). A job replaces files such as "
            "figures/*.png and metrics.json, so its directory must be new, or without such files, or an earlier "
            "record. Choose another paths.output_dir (or hydra.run.dir)."
        )
