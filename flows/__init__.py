"""The deployable dataflows."""
