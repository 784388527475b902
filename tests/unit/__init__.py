"""No I/O beyond temporary files."""
