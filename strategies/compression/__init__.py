"""Fewer bytes for a vector: linear codecs that sums commute with, and a quantizer for what travels in plain."""
