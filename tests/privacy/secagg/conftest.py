from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privacy.secagg import (
    RoundContext,
    SecAggClient,
    SecAggCoordinator,
    SecAggParameters,
    SimulationAuthority,
)
from umbel.config.secagg import SecAggConfig

AUTHORITY = SimulationAuthority(b"a secret of these tests")


class Cohort:
    """n clients and a coordinator that play a round step by step, in one process."""

    def __init__(self, n=5, length=33, bits=20, run="run", broadcast=bytes(32), attempt=0, graph="complete", **options):
        self.parameters = SecAggParameters.choose(SecAggConfig(bits=bits, graph=graph), n, length, **options)
        self.context = RoundContext(run, 1, attempt, broadcast)
        self.ids = list(range(10, 10 + n))
        self.roster = AUTHORITY.roster(self.ids)
        self.clients = {id: self.client(id) for id in self.ids}
        self.coordinator = SecAggCoordinator(self.parameters, self.context, self.roster)
        rng = np.random.default_rng(7)
        drawn = {id: rng.standard_normal(length) for id in self.ids}
        self.vectors = {id: (0.9 * v / np.linalg.norm(v)).astype(np.float32) for id, v in drawn.items()}

    def client(self, id, context=None, parameters=None, roster=None, once=None):
        return SecAggClient(
            AUTHORITY.identity(id),
            roster or self.roster,
            parameters or self.parameters,
            context or self.context,
            once,
        )

    def other_context(self, **changes):
        return replace(self.context, **changes)

    def advertise(self, ids=None):
        for id in ids or self.ids:
            self.coordinator.receive_advertisement(id, self.clients[id].advertise())
        return self.coordinator.key_list()

    def share(self, ids=None):
        listed = self.advertise()
        for id in ids or self.ids:
            self.coordinator.receive_shares(id, self.clients[id].share(listed))

    def masked(self, id, **more):
        return self.clients[id].mask(self.coordinator.shares_for(id), self.vectors[id], **more)

    def mask(self, ids=None):
        self.share()
        for id in ids or self.ids:
            self.coordinator.receive_masked(id, self.masked(id))
        return self.coordinator.survivors_message()

    def confirm(self, ids=None):
        survivors = self.mask(ids)
        for id in self.coordinator.survivors:
            self.coordinator.receive_confirmation(id, self.clients[id].confirm(survivors))
        return self.coordinator.signatures_message()

    def finish(self, ids=None):
        signatures = self.confirm(ids)
        for id in self.coordinator.confirming:
            self.coordinator.receive_unmasking(id, self.clients[id].unmask(signatures))
        return self.coordinator.finish()

    def expected(self, survivors):
        return np.sum([self.vectors[id].astype(np.float64) for id in survivors], axis=0)


@pytest.fixture
def cohort():
    return Cohort
