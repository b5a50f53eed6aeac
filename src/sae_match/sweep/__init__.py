"""A sweep as the command sees it: what its jobs note down, where it stands, and the table that it ends with."""

from sae_match.sweep.launch import SweepConfigLoader, in_sweep, reported

__all__ = ["SweepConfigLoader", "in_sweep", "reported"]
