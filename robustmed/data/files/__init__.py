"""Readers of file formats, and how folders are split by exams."""
