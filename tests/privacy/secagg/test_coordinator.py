from dataclasses import replace

import numpy as np
import pytest

from privacy.secagg import Phase, SecAggCoordinator
from privacy.secagg.messages import Advertisement, Confirmation, Masked, Shares, Unmasking
from umbel.errors import ProtocolViolation, RoundAborted, SecAggError


def refused(reason, work):
    with pytest.raises(ProtocolViolation) as caught:
        work()
    assert caught.value.reason == reason


def close(c, aggregate, survivors):
    error = np.abs(aggregate.sum - c.expected(survivors)).max()
    return error <= (len(survivors) + 0.1) / c.parameters.scale


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_the_sum_of_everybody(cohort, bits):
    c = cohort(bits=bits)
    aggregate = c.finish()
    assert aggregate.survivors == tuple(c.ids)
    assert close(c, aggregate, c.ids)
    np.testing.assert_allclose(aggregate.mean * 5, aggregate.sum)
    assert set(aggregate.counts.values()) == {5}
    assert aggregate.bytes["masked"] == 5 * (Masked.OVERHEAD + c.parameters.encoding.wire_bytes)


def test_losses_at_every_stage(cohort):
    c = cohort(n=14, length=50)
    ids, lost = c.ids, []

    def alive():
        return [id for id in ids if id not in lost]

    coordinator = c.coordinator
    lost.append(ids[3])
    for id in alive():
        coordinator.receive_advertisement(id, c.clients[id].advertise())
    lost.append(ids[0])
    listed = coordinator.key_list()
    for id in alive():
        coordinator.receive_shares(id, c.clients[id].share(listed))
    lost.append(ids[7])
    for id in alive():
        coordinator.receive_masked(id, c.masked(id))
    lost.append(ids[11])
    for id in alive():
        coordinator.receive_confirmation(id, c.clients[id].confirm(coordinator.survivors_message()))
    lost.append(ids[5])
    for id in alive():
        coordinator.receive_unmasking(id, c.clients[id].unmask(coordinator.signatures_message()))
    aggregate = coordinator.finish()
    in_sum = [id for id in ids if id not in (ids[3], ids[0], ids[7])]
    assert aggregate.survivors == tuple(in_sum)
    assert close(c, aggregate, in_sum)
    assert list(aggregate.counts.values()) == [13, 12, 11, 10, 9]


def test_sparse_graph_with_losses(cohort):
    c = cohort(n=110, graph="sparse", length=9)
    assert c.parameters.k < 109
    aggregate = c.finish([id for id in c.ids if id % 11])
    assert close(c, aggregate, aggregate.survivors)
    assert len(aggregate.survivors) == 100


def test_weighted_mean(cohort):
    c = cohort(max_weight=100)
    c.share()
    for i, id in enumerate(c.ids):
        c.coordinator.receive_masked(id, c.masked(id, weight=10 * i))
    for id in c.ids:
        c.coordinator.receive_confirmation(id, c.clients[id].confirm(c.coordinator.survivors_message()))
    for id in c.ids:
        c.coordinator.receive_unmasking(id, c.clients[id].unmask(c.coordinator.signatures_message()))
    aggregate = c.coordinator.finish()
    assert aggregate.metrics == {"weight": 100}
    expected = sum(10 * i * c.vectors[id].astype(float) for i, id in enumerate(c.ids)) / 100
    np.testing.assert_allclose(aggregate.mean, expected, atol=6 / c.parameters.scale)


def test_too_few_at_each_stage_aborts_cleanly_and_stays_aborted(cohort):
    c = cohort(n=7)
    few = c.ids[: c.parameters.minimum - 1]
    for id in few:
        c.coordinator.receive_advertisement(id, c.clients[id].advertise())
    for _ in range(2):
        with pytest.raises(RoundAborted, match="keys"):
            c.coordinator.key_list()
    with pytest.raises(RoundAborted):
        c.coordinator.finish()

    d = cohort(n=7)
    listed = d.advertise()
    for id in few:
        d.coordinator.receive_shares(id, d.clients[id].share(listed))
    with pytest.raises(RoundAborted, match="shares"):
        d.coordinator.shares_for(few[0])

    e = cohort(n=7)
    with pytest.raises(RoundAborted, match="masked"):
        e.mask(few)

    f = cohort(n=7)
    survivors = f.mask()
    for id in few:
        f.coordinator.receive_confirmation(id, f.clients[id].confirm(survivors))
    with pytest.raises(RoundAborted, match="confirmations"):
        f.coordinator.signatures_message()

    g = cohort(n=7)
    signatures = g.confirm()
    for id in few:
        g.coordinator.receive_unmasking(id, g.clients[id].unmask(signatures))
    with pytest.raises(RoundAborted, match="shares of the seed"):
        g.coordinator.finish()


def test_duplicates_and_late_messages_are_ignored(cohort):
    c = cohort(n=7)
    coordinator = c.coordinator
    first = c.clients[c.ids[0]].advertise()
    assert coordinator.receive_advertisement(c.ids[0], first) is True
    assert coordinator.receive_advertisement(c.ids[0], first) is False
    for id in c.ids[1:-1]:
        coordinator.receive_advertisement(id, c.clients[id].advertise())
    listed = coordinator.key_list()
    assert coordinator.receive_advertisement(c.ids[-1], c.clients[c.ids[-1]].advertise()) is False
    assert coordinator.late == 1
    for id in c.ids[:-1]:
        message = c.clients[id].share(listed)
        assert coordinator.receive_shares(id, message) is True
        assert coordinator.receive_shares(id, message) is False
    for id in c.ids[:-1]:
        message = c.masked(id)
        assert coordinator.receive_masked(id, message) is True
        assert coordinator.receive_masked(id, message) is False
    for id in c.ids[:-1]:
        message = c.clients[id].confirm(coordinator.survivors_message())
        assert coordinator.receive_confirmation(id, message) is True
        assert coordinator.receive_confirmation(id, message) is False
    for id in c.ids[:-1]:
        message = c.clients[id].unmask(coordinator.signatures_message())
        assert coordinator.receive_unmasking(id, message) is True
        assert coordinator.receive_unmasking(id, message) is False
    aggregate = coordinator.finish()
    assert close(c, aggregate, c.ids[:-1])
    assert coordinator.late == 1


def test_the_order_of_stages(cohort):
    c = cohort()
    refused("order", lambda: c.coordinator.receive_shares(c.ids[0], b""))
    refused("order", lambda: c.coordinator.receive_unmasking(c.ids[0], b""))
    for early in (c.coordinator.survivors_message, c.coordinator.signatures_message, c.coordinator.finish):
        with pytest.raises(SecAggError, match="not begun"):
            early()
    c.finish()
    assert c.coordinator.phase is Phase.FINISHED
    with pytest.raises(SecAggError, match="finished"):
        c.coordinator.finish()


def test_foreign_advertisements(cohort):
    c = cohort()
    message = c.clients[c.ids[0]].advertise()
    refused("foreign", lambda: c.coordinator.receive_advertisement(c.ids[1], message))
    other = c.client(c.ids[1], context=c.other_context(round=2))
    refused("context", lambda: c.coordinator.receive_advertisement(c.ids[1], other.advertise()))
    found = Advertisement.from_bytes(message, c.coordinator.context)
    forged = replace(found, signature=bytes(64)).to_bytes(c.coordinator.context)
    refused("signature", lambda: c.coordinator.receive_advertisement(c.ids[0], forged))
    stranger = cohort(n=6)
    stranger.parameters, stranger.context = c.parameters, c.context
    outside = stranger.client(stranger.ids[-1])
    refused("foreign", lambda: c.coordinator.receive_advertisement(stranger.ids[-1], outside.advertise()))
    assert c.coordinator.receive_advertisement(c.ids[0], message)


def test_a_cohort_is_not_overfilled(cohort):
    c = cohort(n=6)
    small = cohort(n=5)
    coordinator = SecAggCoordinator(small.parameters, small.context, c.roster)
    for id in c.ids[:5]:
        coordinator.receive_advertisement(id, c.client(id, parameters=small.parameters).advertise())
    refused(
        "cohort",
        lambda: coordinator.receive_advertisement(
            c.ids[5], c.client(c.ids[5], parameters=small.parameters).advertise()
        ),
    )


def test_refused_senders_drop_out_and_the_round_goes_on(cohort):
    c = cohort(n=12)
    coordinator, ctx = c.coordinator, c.coordinator.context
    listed = c.advertise()
    good = {id: c.clients[id].share(listed) for id in c.ids}
    bad = Shares.from_bytes(good[c.ids[0]], ctx)
    for reason, message in (
        ("signature", replace(bad, commitment=bytes(32))),
        ("context", replace(bad, list_hash=bytes(32))),
        ("foreign", replace(bad, ciphertexts=bad.ciphertexts[:-1])),
        ("foreign", replace(bad, id=c.ids[1])),
    ):
        refused(reason, lambda message=message: coordinator.receive_shares(c.ids[0], message.to_bytes(ctx)))
    for id in c.ids[1:]:
        coordinator.receive_shares(id, good[id])
    refused("foreign", lambda: coordinator.shares_for(c.ids[0]))
    whole = c.masked(c.ids[1])
    for reason, data in (("malformed", whole[:-1]), ("oversized", whole + b"x"), ("context", whole[:40])):
        if reason == "context":
            data = whole[:4] + bytes(32) + whole[36:]
        refused(reason, lambda data=data: coordinator.receive_masked(c.ids[1], data))
    refused("foreign", lambda: coordinator.receive_masked(c.ids[2], whole))
    for id in c.ids[2:]:
        coordinator.receive_masked(id, c.masked(id))
    message = coordinator.survivors_message()
    for id in c.ids[2:]:
        answer = c.clients[id].confirm(message)
        if id == c.ids[2]:
            forged = replace(Confirmation.from_bytes(answer, ctx), signature=bytes(64)).to_bytes(ctx)
            refused("signature", lambda id=id, forged=forged: coordinator.receive_confirmation(id, forged))
            continue
        coordinator.receive_confirmation(id, answer)
    signatures = coordinator.signatures_message()
    for id in c.ids[3:]:
        answer = c.clients[id].unmask(signatures)
        if id == c.ids[3]:
            short = Unmasking.from_bytes(answer, ctx)
            short = replace(short, shares=short.shares[1:]).to_bytes(ctx)
            refused("share", lambda id=id, short=short: coordinator.receive_unmasking(id, short))
            continue
        coordinator.receive_unmasking(id, answer)
    aggregate = coordinator.finish()
    assert aggregate.survivors == tuple(c.ids[2:])
    assert close(c, aggregate, c.ids[2:])


@pytest.mark.parametrize("liars", [1, 3])
def test_lying_about_shares_is_noticed_and_survived_where_possible(cohort, liars):
    c = cohort(n=9)
    ctx, signatures = c.coordinator.context, c.confirm(c.ids[1:])
    for id in c.coordinator.confirming:
        message = Unmasking.from_bytes(c.clients[id].unmask(signatures), ctx)
        if id in c.ids[2 : 2 + liars]:
            message = replace(message, shares=tuple((o, s, bytes([1]) + share[1:]) for o, s, share in message.shares))
        c.coordinator.receive_unmasking(id, message.to_bytes(ctx))
    if liars == 1:
        assert close(c, c.coordinator.finish(), c.ids[1:])
    else:
        with pytest.raises(RoundAborted, match="do not give what it committed to"):
            c.coordinator.finish()


def test_memory_does_not_grow_with_the_cohort(cohort):
    import tracemalloc

    peaks = []
    for n in (4, 16):
        c = cohort(n=n, length=100_000, bits=32)
        c.share()
        messages = {id: c.masked(id) for id in c.ids}
        tracemalloc.start()
        for id in c.ids:
            c.coordinator.receive_masked(id, messages[id])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
