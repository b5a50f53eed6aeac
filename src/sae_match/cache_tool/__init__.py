"""`sae-match-cache`: what the shared cache holds, whether it is intact, and making room."""

from __future__ import annotations
