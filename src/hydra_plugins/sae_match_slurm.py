"""Where Hydra looks for launchers: it takes them from no other package."""

from contextlib import suppress

with suppress(ImportError):  # without the extra [slurm]
    from sae_match.sweep.slurm import SlurmLauncher as _SlurmLauncher

    class SlurmLauncher(_SlurmLauncher):
        """The jobs of a sweep as a Slurm array."""
