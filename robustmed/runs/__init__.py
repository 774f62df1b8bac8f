"""The engine that runs any experiment: stages, workdirs, locks, plans, forecasts, artifacts."""
