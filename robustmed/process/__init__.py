"""Devices, hosts, files, console and exit codes: what a process of ours shares with any other."""
