"""Hypothesis: replay, split and merge of batches; order of positions."""
