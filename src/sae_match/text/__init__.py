"""Dataset sources to fixed token windows, materialised once."""

from __future__ import annotations

from sae_match.text.token_windows import TokenWindows
from sae_match.text.windows import load_windows

__all__ = ["TokenWindows", "load_windows"]
