"""Chest CT with nodules (LUNA16), and its phantom."""
