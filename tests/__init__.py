"""Waxlake's tests; what each folder holds is in CONTRIBUTING.md."""
