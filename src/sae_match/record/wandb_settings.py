"""How W&B is started here: quiet, tagged correctly, and keeping its files where they belong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

MAX_TAG = 64
MAX_ARTIFACT_NAME = 128
INIT_TIMEOUT_SECONDS = 30.0


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags without repetition, in order; those of WANDB_TAGS (with commas between) where there are none.

    Raises:
        UserError: a tag is empty or longer than W&B's 64 characters.
    """
    tags = tags or [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    for tag in tags:
        if not isinstance(tag, str) or not 1 <= len(tag) <= MAX_TAG:
            raise UserError(
                f"tracking.tags: {tag!r} has {len(str(tag))} characters; W&B allows 1 to {MAX_TAG}. Shorten it."
            )
    return tuple(dict.fromkeys(tags))


def setting(value: str | None, variable: str, default: str | None = None) -> str | None:
    """What the configuration says, else what W&B's own environment variable says, else the default.

    W&B itself reads its variables once per process.
    """
    return value or os.environ.get(variable) or default


def is_disabled() -> bool:
    """Whether W&B's own variable switches it off, whatever the configuration says."""
    return os.environ.get("WANDB_MODE") == "disabled"


def artifact_name(text: str) -> str:
    """A legal artifact name: letters, digits, '.', '_' and '-', at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:MAX_ARTIFACT_NAME] or "artifact"


def wandb_directories(job: Path, cache: Path, mode: str) -> dict[str, str]:
    """W&B's directory variables for one run.

    Artifact staging (WANDB_DATA_DIR) belongs to the job: a later `wandb sync` of an offline run reads
    the staged files, so they must live as long as the run and not in a cache that may be cleared. The
    configuration folder is left alone online: it names the server that `wandb login --host` chose.
    """
    folders = {"WANDB_DATA_DIR": job / "wandb" / "staging", "WANDB_CACHE_DIR": cache / "wandb"}
    if mode == "offline":
        folders["WANDB_CONFIG_DIR"] = cache / "wandb" / "config"
    return {name: str(folder.resolve()) for name, folder in folders.items()}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block, then restore what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
