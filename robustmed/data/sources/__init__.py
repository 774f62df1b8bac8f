"""Readers of real data sets in the files of their original distribution."""
