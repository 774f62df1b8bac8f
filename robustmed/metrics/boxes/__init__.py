"""Metrics of detected boxes: overlap, matching, average precision."""
