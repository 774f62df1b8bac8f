"""Radiographs of the head with landmarks, and their phantom."""
