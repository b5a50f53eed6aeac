"""Collecting everything that would stop a job, instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sae_match.errors import UserError


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """A `UserError` inside the block ends the block and becomes an entry of `problems`, once."""
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
