"""Synthetic twins: the same features and splits as a real source, drawn from a seed."""
