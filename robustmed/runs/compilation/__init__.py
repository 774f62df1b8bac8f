"""Compiles all programs of a run for devices that need not be here: `--stage compile`."""
