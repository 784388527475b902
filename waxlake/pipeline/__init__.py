"""Declare, check, plan and run pipelines; what they did is in the event log."""
