import numpy as np
import pytest

from privacy.secagg import FileGuard, MemoryGuard, SecAggClient, Stage
from privacy.secagg.state import ClientState
from umbel.errors import ProtocolViolation, SecAggError

KEY = bytes(range(32))


class Elsewhere:
    """Moves a client to another process, so to speak, before each step."""

    def __init__(self, cohort, id, once):
        self.cohort, self.id, self.once = cohort, id, once
        self.blob = cohort.client(id, once=once).export(KEY)

    def restored(self):
        c = self.cohort
        return SecAggClient.restore(
            self.blob, KEY, c.client(self.id)._identity, c.roster, c.parameters, c.context, self.once
        )

    def __getattr__(self, step):
        def take(*args, **options):
            client = self.restored()
            message = getattr(client, step)(*args, **options)
            self.blob = client.export(KEY)
            return message

        return take


@pytest.mark.parametrize("graph", ["complete", "sparse"])
def test_a_round_in_which_every_step_runs_elsewhere(cohort, tmp_path, graph):
    c = cohort(n=5) if graph == "complete" else cohort(n=104, graph="sparse", length=4)
    moved = {id: Elsewhere(c, id, FileGuard(tmp_path)) for id in c.ids[:5]}
    c.clients = {**c.clients, **moved}
    aggregate = c.finish()
    assert np.abs(aggregate.sum - c.expected(c.ids)).max() <= (len(c.ids) + 1) / c.parameters.scale
    assert all(client.restored().stage is Stage.DONE for client in moved.values())


def test_a_state_restored_twice_sends_once(cohort, tmp_path):
    c = cohort()
    c.share()
    id = c.ids[0]
    guard = FileGuard(tmp_path / "claims")
    c.clients[id]._once = guard
    blob = c.clients[id].export(KEY)
    one, two = (
        SecAggClient.restore(
            blob, KEY, c.clients[id]._identity, c.roster, c.parameters, c.context, FileGuard(guard._folder)
        )
        for _ in range(2)
    )
    delivery = c.coordinator.shares_for(id)
    one.mask(delivery, c.vectors[id])
    with pytest.raises(ProtocolViolation) as refused:
        two.mask(delivery, c.vectors[id] * 2)
    assert refused.value.reason == "repeated"


def test_a_new_client_object_in_the_same_context_cannot_start_over(cohort):
    c, guard = cohort(), MemoryGuard()
    c.client(c.ids[0], once=guard).advertise()
    with pytest.raises(ProtocolViolation) as refused:
        c.client(c.ids[0], once=guard).advertise()
    assert refused.value.reason == "repeated"
    c.client(c.ids[0], context=c.other_context(attempt=1), once=guard).advertise()


def test_sealed_states_hide_and_bind(cohort):
    c = cohort()
    c.share()
    a, b = c.ids[:2]
    blob = c.clients[a].export(KEY)
    state = c.clients[a]._state
    for secret in (state.seed, state.masking, state.encryption):
        assert bytes(secret) not in blob

    def restore(blob, key=KEY, id=a, context=c.context):
        return SecAggClient.restore(blob, key, c.clients[id]._identity, c.roster, c.parameters, context)

    assert restore(blob).stage is Stage.SHARED
    changed = blob[:-1] + bytes([blob[-1] ^ 1])
    for attempt in (
        lambda: restore(changed),
        lambda: restore(blob[:10]),
        lambda: restore(b""),
        lambda: restore(blob, key=bytes(32)),
        lambda: restore(blob, id=b),
        lambda: restore(blob, context=c.other_context(attempt=1)),
    ):
        with pytest.raises(ProtocolViolation) as refused:
            attempt()
        assert refused.value.reason == "context"
    with pytest.raises(SecAggError, match="32 bytes"):
        c.clients[a].export(b"short")


def test_erasing_overwrites():
    seed, share = bytearray(b"s" * 32), bytearray(b"x" * 68)
    state = ClientState(Stage.MASKED, bytearray(b"e" * 32), bytearray(b"m" * 32), seed, b"list", {1: share}, (1,))
    assert "ssss" not in repr(state)
    state.erase()
    assert seed == bytes(32)
    assert share == bytes(68)
    assert state == ClientState(stage=Stage.DONE)


def test_everything_is_erased_after_the_last_step(cohort):
    c = cohort()
    c.finish()
    for client in c.clients.values():
        assert client._state == ClientState(stage=Stage.DONE)
        assert client._keys is None


@pytest.mark.parametrize("make", [lambda path: MemoryGuard(), lambda path: FileGuard(path / "deep" / "er")])
def test_guards_grant_once(make, tmp_path):
    guard = make(tmp_path)
    assert guard.claim(bytes(32), 1, "mask")
    assert not guard.claim(bytes(32), 1, "mask")
    assert guard.claim(bytes(32), 1, "confirm")
    assert guard.claim(bytes(32), 2, "mask")
    assert guard.claim(b"x" * 32, 1, "mask")


def test_a_file_guard_outlives_its_process_and_fails_closed(tmp_path):
    assert FileGuard(tmp_path).claim(bytes(32), 1, "mask")
    assert not FileGuard(tmp_path).claim(bytes(32), 1, "mask")
    (tmp_path / "file").write_text("")
    with pytest.raises(SecAggError, match="cannot be written"):
        FileGuard(tmp_path / "file").claim(bytes(32), 1, "mask")
