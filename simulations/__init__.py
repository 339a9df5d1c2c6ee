"""Simulation of many devices."""
