"""The pipeline of `waxlake demo`."""
