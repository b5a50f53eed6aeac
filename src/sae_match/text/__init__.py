"""Texts to fixed token windows, cut once. Imported on first use: the classes of `text.sources` need no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_match.text.windows import TokenWindows, load_fit_windows, load_windows

__all__ = ["TokenWindows", "load_fit_windows", "load_windows"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sae_match.text import windows

    return getattr(windows, name)
