"""What is shown while a job runs. Imports no library that shows something: these read their environment on import."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import ClassVar, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

EXIT_UNREAD = 141
"""What a shell reports of a program that SIGPIPE ended."""
EXIT_USER_ERROR = 2


class OncePerSweep(logging.Filter):
    """On the console a warning comes once, whichever job of a sweep repeats it; every job's own log has all of its."""

    shown: ClassVar[set[str]] = set()
    """Warnings of this command so far; the jobs of a sweep that runs here share them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a message."""
        if record.levelno != logging.WARNING:
            return True
        known = (message := record.getMessage()) in self.shown
        self.shown.add(message)
        return not known


def wants_bars(progress: bool | None) -> bool:
    """Whether bars are drawn: as asked, or (None) where standard error is a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def quiet_libraries(progress: bool | None) -> None:
    """Where no bars are wanted, have libraries draw none; before they are imported."""
    if not wants_bars(progress):
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")


def quiet_when_unread(main: Callable[P, T]) -> Callable[P, T]:
    """A command that ends without a traceback where the reader of its output has gone, as in `COMMAND | head`.

    It exits with 141, or with its own code where it had failed before.
    """

    @wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # what Python would do at exit, where an error cannot be caught
        except BrokenPipeError as error:
            if not _discard_unread():
                raise  # a pipe to another process than the reader
            first = error.__context__
            if isinstance(first, SystemExit) and first.code:
                raise first from None
            sys.exit(EXIT_UNREAD)

    return command


def _discard_unread() -> bool:
    """Send streams whose reader has gone to the null device; whether there was one."""
    unread = []
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            waiting = select.poll()
            waiting.register(stream, 0)  # errors are reported whatever is asked for
            unread += [stream.fileno()] if waiting.poll(0) else []
    for descriptor in unread:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    return bool(unread)


def fail(message: str) -> NoReturn:
    """Print an error and leave with the exit code of a user's mistake; silently where a shell asks for completions,
    since an error would be printed into its line.
    """
    options = ("-sc", "--shell-completion", "--shell_completion")
    if not any(option in options and value.startswith("query=") for option, value in pairwise(sys.argv)):
        print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
