"""Checks times restart scenarios; real processes are killed."""
