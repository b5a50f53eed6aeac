"""The commands: Hydra composes a configuration, which is checked and turned into a job."""

from sae_match.app.main import main

__all__ = ["main"]
