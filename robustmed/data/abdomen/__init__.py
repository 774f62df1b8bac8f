"""Abdominal CT with organ labels, and its phantom."""
