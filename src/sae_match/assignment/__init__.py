"""Exact assignment on short candidate lists, proved by its duals; NumPy and Numba alone, and nothing of SAEs."""
