"""Configuration: its schema, and from a composed configuration to objects."""
