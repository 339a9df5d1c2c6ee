"""Epsilon of the events that happened: PLD where every event has one, RDP otherwise, never GDP."""

from privacy.accounting.calibrate import calibrate
from privacy.accounting.compose import epsilon, epsilon_bound
from privacy.accounting.event import Event
from privacy.accounting.lattice import LatticeEncoding
from privacy.accounting.per_example import per_example

__all__ = ["Event", "LatticeEncoding", "calibrate", "epsilon", "epsilon_bound", "per_example"]
