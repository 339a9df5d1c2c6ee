"""Audits: measuring what leaks and comparing it with what is claimed."""
