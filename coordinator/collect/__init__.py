"""Collectors: plain and secure, of a whole cohort or of random groups."""

from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.collect.booked import BookedCollector
from coordinator.collect.grouped import GroupedCollector
from coordinator.collect.plain import PlainCollector
from coordinator.collect.secure import SecureCollector

__all__ = [
    "BookedCollector",
    "Broadcast",
    "Collected",
    "Collector",
    "GroupedCollector",
    "PlainCollector",
    "SecureCollector",
]
