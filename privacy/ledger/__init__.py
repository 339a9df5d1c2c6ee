"""The append-only book of what was spent, written before the release it pays for."""

from privacy.ledger.booking import book
from privacy.ledger.budget import Budget
from privacy.ledger.entry import Entry
from privacy.ledger.ledger import Ledger

__all__ = ["Budget", "Entry", "Ledger", "book"]
