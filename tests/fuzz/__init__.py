"""Damaged and hostile inputs for every reader of files, and what each reader may answer."""
