"""Any interleaving, any loss, any duplicate: the bit-exact sum of the survivors, or a clean abort."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privacy.secagg import (
    Phase,
    RoundContext,
    SecAggClient,
    SecAggCoordinator,
    SecAggParameters,
    SimulationAuthority,
    Stage,
)
from privacy.secagg.planes import signed
from umbel.config.secagg import SecAggConfig
from umbel.errors import ProtocolViolation, RoundAborted

AUTHORITY = SimulationAuthority(b"the stateful protocol test")
KEY = bytes(32)
LENGTH = 6


class Protocol(RuleBasedStateMachine):
    """The network holds messages in both directions; rules deliver, repeat, lose and reorder them at will."""

    @initialize(
        n=st.integers(3, 9),
        bits=st.sampled_from([16, 20, 24, 32]),
        corrupt=st.sampled_from([0.1, 0.3]),
        losses=st.integers(0, 5),
    )
    def begin(self, n, bits, corrupt, losses):
        self.losses = losses
        self.parameters = SecAggParameters.choose(SecAggConfig(bits=bits, corrupt=corrupt, dropout=0.0), n, LENGTH)
        self.context = RoundContext("stateful", 1, 0, bytes(32))
        self.ids = list(range(n))
        self.roster = AUTHORITY.roster(self.ids)
        self.clients = {
            id: SecAggClient(AUTHORITY.identity(id), self.roster, self.parameters, self.context) for id in self.ids
        }
        self.coordinator = SecAggCoordinator(self.parameters, self.context, self.roster)
        self.words, self.up, self.old = {}, {}, []
        self.dead, self.aborted, self.aggregate = set(), False, None
        for id in self.ids:
            self.up[id] = ("advertisement", self.clients[id].advertise())

    def deliver(self, id, kind, message):
        return getattr(self.coordinator, f"receive_{kind}")(id, message)

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def arrive(self, data):
        id = data.draw(st.sampled_from(sorted(self.up)))
        kind, message = self.up.pop(id)
        self.deliver(id, kind, message)
        self.old.append((id, kind, message))

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def arrive_all(self, data):
        for id in data.draw(st.permutations(sorted(self.up))):
            kind, message = self.up.pop(id)
            self.deliver(id, kind, message)
            self.old.append((id, kind, message))

    @precondition(lambda self: self.up and self.losses)
    @rule(data=st.data())
    def die(self, data):
        self.losses -= 1
        id = data.draw(st.sampled_from(sorted(self.up)))
        del self.up[id]
        self.dead.add(id)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def arrive_again(self, data):
        id, kind, message = data.draw(st.sampled_from(self.old))
        assert self.deliver(id, kind, message) is False

    @precondition(lambda self: self.up)
    @rule(data=st.data(), place=st.integers(0, 10_000))
    def arrive_damaged(self, data, place):
        """Header or signature bytes; damage inside a masked payload cannot be told from another payload."""
        id = data.draw(st.sampled_from(sorted(self.up)))
        kind, message = self.up[id]
        if self.coordinator.phase != self.phase_of(kind):
            return
        place = place % (44 if kind in ("masked", "unmasking") else len(message))
        if kind == "shares" and place >= 172:
            return  # inside a ciphertext: its receiver notices, not the coordinator
        damaged = bytearray(message)
        damaged[place] ^= 0x55
        try:
            outcome = self.deliver(id, kind, bytes(damaged))
        except ProtocolViolation:
            outcome = "refused"
        assert outcome == "refused"

    def phase_of(self, kind):
        return {
            "advertisement": Phase.ADVERTISEMENTS,
            "shares": Phase.SHARES,
            "masked": Phase.MASKED,
            "confirmation": Phase.CONFIRMATIONS,
            "unmasking": Phase.UNMASKINGS,
        }[kind]

    @precondition(lambda self: self.up and self.losses)
    @rule(hop=st.booleans())
    def hurry(self, hop):
        """The coordinator does not wait for the rest: what is under way arrives late, if ever."""
        self.losses -= 1
        self.old += [(id, kind, message) for id, (kind, message) in self.up.items()]
        self.up = {}
        self.next_stage(hop)

    @precondition(lambda self: not self.up and not self.aborted and self.aggregate is None)
    @rule(hop=st.booleans())
    def next_stage(self, hop):
        """Everybody answered or is dead; whoever is still known goes on, maybe in another process."""
        phase = self.coordinator.phase
        try:
            self.step(phase, hop)
        except RoundAborted:
            self.aborted = True
            self.up.clear()
            # Nobody revealed a share before enough survivors confirmed the same set.
            assert phase == Phase.UNMASKINGS or all(client.stage < Stage.DONE for client in self.clients.values())

    def step(self, phase, hop):
        coordinator = self.coordinator
        if phase == Phase.ADVERTISEMENTS:
            message = coordinator.key_list()
            self.answer(coordinator.listed, "shares", hop, lambda client: client.share(message))
        elif phase == Phase.SHARES:
            self.answer(coordinator.close_shares(), "masked", hop, self.mask)
        elif phase == Phase.MASKED:
            message = coordinator.survivors_message()
            self.answer(coordinator.survivors, "confirmation", hop, lambda client: client.confirm(message))
        elif phase == Phase.CONFIRMATIONS:
            message = coordinator.signatures_message()
            self.answer(coordinator.confirming, "unmasking", hop, lambda client: client.unmask(message))
        elif phase == Phase.UNMASKINGS:
            total = coordinator._sum
            self.aggregate = coordinator.finish()
            expected = np.zeros(self.parameters.encoding.width, dtype=np.int64)
            for id in self.aggregate.survivors:
                expected += signed(self.words[id], self.parameters.bits)
            assert np.array_equal(signed(total, self.parameters.bits), expected)  # bit for bit

    def answer(self, ids, kind, hop, work):
        self.up = {}
        for id in ids:
            if id in self.dead:
                continue
            client = self.clients[id]
            if hop:
                client = self.clients[id] = SecAggClient.restore(
                    client.export(KEY), KEY, AUTHORITY.identity(id), self.roster, self.parameters, self.context
                )
            self.up[id] = (kind, work(client))

    def mask(self, client):
        values = np.random.default_rng(client.id).uniform(-0.4, 0.4, LENGTH).astype(np.float32)
        encoding, kept = self.parameters.encoding, self.words
        encode = type(encoding).encode

        def remember(values, metrics, weight, seed):
            words = encode(encoding, values, metrics, weight, seed)
            kept[client.id] = words.copy()
            return words

        object.__setattr__(encoding, "encode", remember)
        try:
            return client.mask(self.coordinator.shares_for(client.id), values)
        finally:
            object.__delattr__(encoding, "encode")

    @precondition(lambda self: not self.up and (self.aborted or self.aggregate is not None))
    @rule()
    def rest(self):
        """The round is over, one way or the other."""
        assert self.aborted or self.coordinator.phase is Phase.FINISHED

    @invariant()
    def secrets_are_gone_after_the_end(self):
        for client in getattr(self, "clients", {}).values():
            if client.stage is Stage.DONE:
                assert not client._state.seed
                assert not client._state.shares

    @invariant()
    def an_aborted_round_keeps_no_sum(self):
        if getattr(self, "aborted", False):
            assert self.coordinator._sum.size == 0


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@settings(max_examples=120)
@given(data=st.data())
def test_losses_and_orders_at_every_stage(data):
    """Plays whole rounds: a few clients vanish at each stage, the rest answer in any order, some twice.

    The outcome is known beforehand: an abort exactly where too few are left, else the integers' sum, bit for bit.
    """
    run = Protocol()
    bits, corrupt = data.draw(st.sampled_from([16, 20, 24, 32])), data.draw(st.sampled_from([0.1, 0.3]))
    run.begin(data.draw(st.integers(4, 16)), bits, corrupt, 0)
    needed = max(run.parameters.minimum, run.parameters.confirmations)
    alive = set(run.ids)
    for phase in (Phase.ADVERTISEMENTS, Phase.SHARES, Phase.MASKED, Phase.CONFIRMATIONS, Phase.UNMASKINGS):
        lost = data.draw(st.sets(st.sampled_from(sorted(alive)), max_size=2)) if alive else set()
        alive -= lost
        run.dead |= lost
        for id in data.draw(st.permutations(sorted(alive))):
            kind, message = run.up[id]
            assert run.deliver(id, kind, message) is True
            if data.draw(st.booleans()):
                assert run.deliver(id, kind, message) is False
        run.up = {}
        assert run.coordinator.phase == phase
        run.next_stage(data.draw(st.booleans()))
        assert run.aborted == (len(alive) < needed)
        if run.aborted:
            assert run.aggregate is None
            return
        if phase == Phase.MASKED:
            in_sum = tuple(sorted(alive))
    assert run.aggregate.survivors == in_sum


def test_sums_of_every_survivor_set_agree_with_the_integers(cohort):
    """Exhaustive for five clients: every set of clients that may die before masking."""
    for lost in range(1 << 5):
        ids = [10 + i for i in range(5) if not lost >> i & 1]
        c = cohort(length=3)
        if len(ids) < c.parameters.minimum:
            try:
                c.finish(ids or None) if ids else c.mask([-1])
            except (RoundAborted, ProtocolViolation, KeyError):
                continue
            raise AssertionError("a round with too few survivors must not finish")
        aggregate = c.finish(ids)
        assert aggregate.survivors == tuple(ids)
        assert np.abs(aggregate.sum - c.expected(ids)).max() <= (len(ids) + 0.1) / c.parameters.scale
