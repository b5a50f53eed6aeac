"""Killing jobs, and what is left."""
