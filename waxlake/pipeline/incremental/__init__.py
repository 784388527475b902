"""Materialized views that cost what changed: what a query is made of, what changed in its inputs, and what that does to it."""
