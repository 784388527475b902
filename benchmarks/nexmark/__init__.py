"""Nexmark: the auction-site benchmark of stream processors, as pipelines. See README.md beside this file."""
