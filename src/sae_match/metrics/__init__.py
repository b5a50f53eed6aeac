"""Metrics: one file per family, each a streaming accumulator over tokens; none knows where data came from."""
