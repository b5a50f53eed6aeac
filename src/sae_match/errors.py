"""The exceptions that stand for a mistake the user can mend."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake in the input, the configuration or the machine's state that the user can mend.

    The message says what is wrong, where, and how to mend it. The command line prints it without a
    traceback and exits with a non-zero code; library callers catch it like any other exception.
    """


class DamagedFileError(UserError):
    """A data file that cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
