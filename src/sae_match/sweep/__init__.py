"""A sweep as the command sees it: what its jobs note down, where it stands, and the table that it ends with."""

from sae_match.sweep.launch import asked_of_slurm, current_job, report_on_exit

__all__ = ["asked_of_slurm", "current_job", "report_on_exit"]
