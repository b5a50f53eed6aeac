"""The benchmark of the assignment solvers: a runner and a report, never part of the test suite (see README.md here)."""
