"""The ground floor: what every connector, sink and pipeline stands on, and nothing of ours below it."""
