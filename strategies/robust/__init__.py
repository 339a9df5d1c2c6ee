"""Aggregation that withstands a share of corrupt clients."""
