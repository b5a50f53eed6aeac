"""What is shown while a job runs. Knows no library that shows something: these read their environment when imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

EXIT_USER_ERROR = 2
_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_COMPLETION = ("-sc", "--shell-completion", "--shell_completion")


def is_completion_query(arguments: Sequence[str]) -> bool:
    """Whether a shell asks for the words that could come next; an error must not be printed into its line."""
    pairs = pairwise(arguments)
    return any(option in _COMPLETION and value.startswith("query=") for option, value in pairs)


def wants_bars(progress: bool | None) -> bool:
    """Whether bars are drawn: as asked, or (None) where standard error is a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def quiet_libraries(progress: bool | None) -> None:
    """Where no bars are wanted, tell the hub's client and `datasets` to draw none; before they are imported."""
    if not wants_bars(progress):
        for name in _NO_BARS:
            os.environ.setdefault(name, "1")


def fail(message: str) -> NoReturn:
    """Print an error and leave with the exit code of a user's mistake; without a word where a shell asks for words."""
    if not is_completion_query(sys.argv):
        print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
