"""What releases that hide a whole client cost one example of that client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from privacy.accounting.event import Event
from privacy.terms import Relation


def per_example(own: Iterable[Event], clients: Iterable[Event]) -> tuple[Event, ...]:
    """Everything that one example was part of: events of the example unit, and events of the client unit.

    A changed, added or removed example leaves its client there, with another update: the client is *replaced*, so the
    sum moves by 2 C, twice of what add-remove at client level says. Client-level events therefore count under
    replace-one, whatever they were booked for.

    Args:
        own: of the example unit, on one data set.
        clients: of the client unit, on the same.

    Returns:
        The events, to be composed together.
    """
    own = tuple(own)
    replaced = [event.under(Relation.REPLACE_ONE) for event in clients]
    if own and all(event.relation is Relation.ADD_REMOVE for event in own):
        # Both relations between examples move an unsampled sum alike (by 2 C), so these events can be said for
        # add-remove too, and need not push the own ones to replace-one. With sampling the two differ.
        replaced = [
            event if event.sampler.amplifies else replace(event, relation=Relation.ADD_REMOVE) for event in replaced
        ]
    return (*own, *replaced)
