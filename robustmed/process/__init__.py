"""Devices and hosts, files, console output, exit codes: what every command of the package uses."""
