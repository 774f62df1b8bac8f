"""Experiments by name: plain composition of everything else. One file and one line each."""

from robustmed.experiments import quickstart

EXPERIMENTS = {'quickstart': quickstart}
