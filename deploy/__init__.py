"""Provisioning and deployment."""
