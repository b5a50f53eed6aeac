"""Checkpoint dialects: one class each, with its options."""
