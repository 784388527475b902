"""Targets out: each sink is a Bytewax output of MicroBatches that commits exactly once."""
