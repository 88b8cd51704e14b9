"""Readers of the publishers' file formats. None runs code that a file holds."""
