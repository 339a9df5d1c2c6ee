"""What to look at before a machine joins a federation; ``umbel preflight`` runs it."""

from deploy.preflight.finding import Check, Finding, run_checks
from deploy.preflight.machine import (
    check_folder,
    check_memory,
    check_model,
    check_port,
    check_stored,
    check_training,
    needed_memory,
)
from deploy.preflight.network import check_clock, check_closed, check_identity, check_node_key, check_reachable

__all__ = [
    "Check",
    "Finding",
    "check_clock",
    "check_closed",
    "check_folder",
    "check_identity",
    "check_memory",
    "check_model",
    "check_node_key",
    "check_port",
    "check_reachable",
    "check_stored",
    "check_training",
    "needed_memory",
    "run_checks",
]
