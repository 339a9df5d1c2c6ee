"""Collectors: plain and secure."""

from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.collect.booked import BookedCollector
from coordinator.collect.plain import PlainCollector
from coordinator.collect.secure import SecureCollector

__all__ = ["BookedCollector", "Broadcast", "Collected", "Collector", "PlainCollector", "SecureCollector"]
