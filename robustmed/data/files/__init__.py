"""Readers of file formats; splits of folders by exam."""
