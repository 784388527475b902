"""Measurements, each a script; the numbers are theirs, printed."""
