"""Measured workloads and scaling, see configs/benchmark.py."""
