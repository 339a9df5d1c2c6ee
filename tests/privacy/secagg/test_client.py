"""Every refusal of the client: what a coordinator or another client might try."""

import math
from dataclasses import replace

import numpy as np
import pytest

from privacy.secagg import Coordinate, Identity, Roster, SimulationAuthority, Stage, statements
from privacy.secagg.keys import AgreementKey
from privacy.secagg.messages import (
    Advertisement,
    Confirmation,
    Delivery,
    KeyList,
    Masked,
    Secret,
    Shares,
    Signatures,
    Survivors,
    Unmasking,
)
from umbel.errors import ProtocolViolation, SecAggError

AUTHORITY = SimulationAuthority(b"a secret of these tests")


def refused(reason, work):
    with pytest.raises(ProtocolViolation) as caught:
        work()
    assert caught.value.reason == reason
    assert str(caught.value).endswith(".")


def relist(c, change):
    """The key list with its entries changed."""
    entries = KeyList.from_bytes(c.advertise(), c.coordinator.context).entries
    return KeyList(tuple(change(list(entries)))).to_bytes(c.coordinator.context)


def signed(c, id, encryption=None, masking=None):
    encryption, masking = encryption or AgreementKey().public, masking or AgreementKey().public
    statement = statements.advertised(c.coordinator.context, id, encryption, masking)
    return Advertisement(id, encryption, masking, AUTHORITY.identity(id).sign(statement))


class TestKeyList:
    def test_another_model_or_configuration(self, cohort):
        c = cohort()
        listed = c.advertise()
        other = c.client(c.ids[0], context=c.other_context(broadcast=b"\x01" * 32))
        other.advertise()
        refused("context", lambda: other.share(listed))

    def test_an_entry_signed_in_another_context_is_replayed(self, cohort):
        c, old = cohort(), cohort(attempt=9)
        replayed = Advertisement.from_bytes(old.clients[old.ids[1]].advertise(), old.coordinator.context)
        listed = relist(c, lambda e: [e[0], replayed, *e[2:]])
        refused("signature", lambda: c.clients[c.ids[0]].share(listed))

    def test_a_forged_signature(self, cohort):
        c = cohort()
        listed = relist(c, lambda e: [e[0], replace(e[1], encryption=AgreementKey().public), *e[2:]])
        refused("signature", lambda: c.clients[c.ids[0]].share(listed))

    def test_an_invented_client(self, cohort):
        c = cohort()
        listed = relist(c, lambda e: [*e[:-1], signed(c, 99)])
        refused("foreign", lambda: c.clients[c.ids[0]].share(listed))

    def test_a_roster_with_another_key(self, cohort):
        c = cohort()
        members = {**c.roster.members, c.ids[1]: Identity(1).public}
        c.clients[c.ids[0]]._roster = Roster(members)
        refused("signature", lambda: c.clients[c.ids[0]].share(c.advertise()))

    def test_a_roster_without_a_member(self, cohort):
        c = cohort()
        c.clients[c.ids[0]]._roster = Roster({id: c.roster.members[id] for id in c.ids if id != c.ids[2]})
        refused("foreign", lambda: c.clients[c.ids[0]].share(c.advertise()))

    def test_own_entry_missing_or_changed(self, cohort):
        c = cohort(n=7)
        refused("key", lambda: c.clients[c.ids[0]].share(relist(c, lambda e: e[1:])))
        d = cohort()
        refused("key", lambda: d.clients[d.ids[0]].share(relist(d, lambda e: [signed(d, d.ids[0]), *e[1:]])))

    def test_too_few_and_too_many(self, cohort):
        c = cohort()
        refused("cohort", lambda: c.clients[c.ids[0]].share(relist(c, lambda e: e[: c.parameters.minimum - 1])))
        d = cohort()
        listed = relist(d, lambda e: [*e, signed(d, 99)])
        refused("cohort", lambda: d.clients[d.ids[0]].share(listed))

    def test_an_id_twice(self, cohort):
        c = cohort()
        refused("duplicate", lambda: c.clients[c.ids[0]].share(relist(c, lambda e: [*e[:2], e[1], *e[3:]])))

    def test_a_key_twice(self, cohort):
        c = cohort()
        listed = relist(c, lambda e: [e[0], e[1], signed(c, e[2].id, encryption=e[1].encryption), *e[3:]])
        refused("duplicate", lambda: c.clients[c.ids[0]].share(listed))

    def test_a_key_of_low_order(self, cohort):
        c = cohort()
        listed = relist(c, lambda e: [e[0], signed(c, e[1].id, encryption=bytes(32)), *e[2:]])
        client = c.clients[c.ids[0]]
        refused("key", lambda: client.share(listed))
        assert client.stage is Stage.ADVERTISED

    def test_a_masking_key_of_low_order(self, cohort):
        c = cohort()
        c.share()
        client = c.clients[c.ids[0]]
        entries, _, _ = client._view
        entries[c.ids[1]] = replace(entries[c.ids[1]], masking=bytes(32))
        refused("key", lambda: c.masked(c.ids[0]))


class TestShares:
    def deliver(self, c, change, id=None):
        id = id or c.ids[0]
        delivery = Delivery.from_bytes(c.coordinator.shares_for(id), c.coordinator.context)
        changed = change(delivery).to_bytes(c.coordinator.context)
        return lambda: c.clients[id].mask(changed, c.vectors[id])

    def test_tampered(self, cohort):
        c = cohort()
        c.share()
        for place in (0, 12, 40, 95):

            def flip(delivery, place=place):
                sender, sealed = delivery.ciphertexts[0]
                bad = bytearray(sealed)
                bad[place] ^= 1
                return replace(delivery, ciphertexts=((sender, bytes(bad)), *delivery.ciphertexts[1:]))

            refused("ciphertext", self.deliver(c, flip))
        c.masked(c.ids[0])  # the right ones are still taken

    def test_swapped_senders(self, cohort):
        c = cohort()
        c.share()

        def swap(delivery):
            (a, x), (b, y), *rest = delivery.ciphertexts
            return replace(delivery, ciphertexts=((a, y), (b, x), *rest))

        refused("ciphertext", self.deliver(c, swap))

    def test_replayed_from_another_round(self, cohort):
        c, old = cohort(), cohort(attempt=5)
        c.share()
        old.share()
        stale = Delivery.from_bytes(old.coordinator.shares_for(c.ids[0]), old.coordinator.context)
        refused("ciphertext", self.deliver(c, lambda d: replace(d, ciphertexts=stale.ciphertexts)))

    def test_foreign(self, cohort):
        c = cohort()
        c.share()
        refused("foreign", self.deliver(c, lambda d: replace(d, receiver=c.ids[1])))
        d = cohort()
        d.share()
        stranger = (999, bytes(96))
        refused("foreign", self.deliver(d, lambda m: replace(m, ciphertexts=(*m.ciphertexts, stranger))))
        mirrored = (d.ids[0], bytes(96))
        refused("foreign", self.deliver(d, lambda m: replace(m, ciphertexts=(mirrored, *m.ciphertexts))))

    def test_another_list(self, cohort):
        c = cohort()
        c.share()
        refused("context", self.deliver(c, lambda d: replace(d, list_hash=bytes(32))))

    def test_fewer_than_the_threshold(self, cohort):
        c = cohort()
        c.share()
        refused(
            "cohort", self.deliver(c, lambda d: replace(d, ciphertexts=d.ciphertexts[: c.parameters.threshold - 2]))
        )

    def test_a_bad_vector_sends_nothing_and_may_be_mended(self, cohort):
        c = cohort()
        c.share()
        client, delivery = c.clients[c.ids[0]], c.coordinator.shares_for(c.ids[0])
        with pytest.raises(SecAggError, match="not finite"):
            client.mask(delivery, np.full(33, math.nan, np.float32))
        with pytest.raises(SecAggError, match="coordinates"):
            client.mask(delivery, c.vectors[c.ids[0]], {"loss": 1.0})
        assert client.stage is Stage.SHARED
        assert client.mask(delivery, c.vectors[c.ids[0]])


class TestSurvivors:
    def show(self, c, ids, list_hash=None):
        message = Survivors(list_hash or c.coordinator._list_hash, tuple(ids)).to_bytes(c.coordinator.context)
        return lambda: c.clients[c.ids[0]].confirm(message)

    def test_not_a_subset_of_those_who_shared(self, cohort):
        c = cohort(n=7)
        listed = c.advertise()
        for id in c.ids[:-1]:
            c.coordinator.receive_shares(id, c.clients[id].share(listed))
        for id in c.ids[:-1]:
            c.coordinator.receive_masked(id, c.masked(id))
        refused("survivors", self.show(c, c.ids))
        refused("survivors", self.show(c, [*c.ids[:-1], 999]))

    def test_without_oneself_or_too_small(self, cohort):
        c = cohort(n=7)
        c.mask()
        refused("survivors", self.show(c, c.ids[1:]))
        refused("cohort", self.show(c, c.ids[: c.parameters.minimum - 1]))
        refused("context", self.show(c, c.ids, bytes(32)))
        refused("duplicate", self.show(c, [*c.ids, c.ids[-1]]))
        assert self.show(c, c.ids)()

    def test_two_sets(self, cohort):
        c = cohort(n=7)
        c.mask()
        self.show(c, c.ids)()
        refused("repeated", self.show(c, c.ids[:-1]))


class TestSignatures:
    def sign(self, c, ids, survivors, by=None):
        statement = statements.confirmed(c.coordinator.context, c.coordinator._list_hash, survivors)
        entries = tuple(Confirmation(id, AUTHORITY.identity((by or {}).get(id, id)).sign(statement)) for id in ids)
        return Signatures(entries).to_bytes(c.coordinator.context)

    def test_split_views(self, cohort):
        """Two disjoint groups are shown different survivors: neither reveals anything."""
        c = cohort(n=7)
        c.mask()
        views = {id: c.ids[:-1] if id in c.ids[:3] else c.ids[1:] for id in c.ids}
        confirmations = {}
        for id in c.ids:
            message = Survivors(c.coordinator._list_hash, tuple(views[id])).to_bytes(c.coordinator.context)
            confirmations[id] = Confirmation.from_bytes(c.clients[id].confirm(message), c.coordinator.context)
        for target in (c.ids[1], c.ids[5]):
            same = [id for id in views[target] if views[id] == views[target]]
            assert len(same) < c.parameters.confirmations
            few = Signatures(tuple(confirmations[id] for id in same)).to_bytes(c.coordinator.context)
            refused("cohort", lambda target=target, few=few: c.clients[target].unmask(few))
            both = Signatures(tuple(confirmations[id] for id in views[target])).to_bytes(c.coordinator.context)
            refused("signature", lambda target=target, both=both: c.clients[target].unmask(both))
            assert c.clients[target].stage is Stage.CONFIRMED

    def test_forged_foreign_repeated_and_few(self, cohort):
        c = cohort(n=7)
        c.mask(c.ids[:-1])
        alive = c.ids[:-1]
        client = c.clients[c.ids[0]]
        client.confirm(c.coordinator.survivors_message())
        refused("cohort", lambda: client.unmask(self.sign(c, alive[: c.parameters.confirmations - 1], alive)))
        refused("signature", lambda: client.unmask(self.sign(c, alive, alive, by={alive[2]: alive[3]})))
        refused("signature", lambda: client.unmask(self.sign(c, alive, c.ids)))
        refused("foreign", lambda: client.unmask(self.sign(c, c.ids, alive)))
        twice = Signatures((Confirmation(alive[0], bytes(64)),) * 5).to_bytes(c.coordinator.context)
        refused("duplicate", lambda: client.unmask(twice))
        revealed = Unmasking.from_bytes(client.unmask(self.sign(c, alive, alive)), c.coordinator.context)
        assert revealed.id == client.id

    def test_never_both_kinds_of_share_for_one_id(self, cohort):
        c = cohort(n=7)
        signatures = c.confirm(c.ids[2:])
        for id in c.coordinator.confirming:
            message = Unmasking.from_bytes(c.clients[id].unmask(signatures), c.coordinator.context)
            kinds = {owner: secret for owner, secret, _ in message.shares}
            assert len(kinds) == len(message.shares) == 7
            assert {owner for owner, secret in kinds.items() if secret is Secret.MASKING_KEY} == set(c.ids[:2])
            refused("repeated", lambda id=id: c.clients[id].unmask(signatures))


def test_steps_out_of_order(cohort):
    c = cohort()
    client = c.clients[c.ids[0]]
    refused("order", lambda: client.share(b""))
    refused("order", lambda: client.mask(b"", c.vectors[c.ids[0]]))
    refused("order", lambda: client.confirm(b""))
    refused("order", lambda: client.unmask(b""))
    c.finish()
    for step in (client.share, client.confirm, client.unmask):
        refused("repeated", lambda step=step: step(b""))
    refused("repeated", client.advertise)


def test_the_masked_vector_is_sent_once(cohort):
    c = cohort()
    c.share()
    c.masked(c.ids[0])
    refused("repeated", lambda: c.masked(c.ids[0]))


def test_an_abandoned_client_reveals_nothing_more(cohort):
    c = cohort()
    c.share()
    c.clients[c.ids[0]].abandon()
    refused("repeated", lambda: c.masked(c.ids[0]))


def test_every_byte_that_a_client_sends(cohort):
    """Message by message: fixed sizes that do not depend on the data, and nothing beside what the protocol names."""
    sizes = []
    for fill, count in ((0.0, 1), (0.9, 900)):
        c = cohort(length=65, max_weight=1000, coordinates=(Coordinate("loss", 100.0, resolution=1e-3),))
        id = c.ids[0]
        sent = {id: [] for id in c.ids}
        for each in c.ids:
            sent[each].append(c.clients[each].advertise())
            c.coordinator.receive_advertisement(each, sent[each][-1])
        listed = c.coordinator.key_list()
        for each in c.ids:
            sent[each].append(c.clients[each].share(listed))
            c.coordinator.receive_shares(each, sent[each][-1])
        for each in c.ids:
            vector = np.full(65, fill, np.float32)
            message = c.clients[each].mask(c.coordinator.shares_for(each), vector, {"loss": fill}, count)
            sent[each].append(message)
            c.coordinator.receive_masked(each, message)
        for each in c.ids:
            sent[each].append(c.clients[each].confirm(c.coordinator.survivors_message()))
            c.coordinator.receive_confirmation(each, sent[each][-1])
        for each in c.ids:
            sent[each].append(c.clients[each].unmask(c.coordinator.signatures_message()))
            c.coordinator.receive_unmasking(each, sent[each][-1])
        sizes.append([len(message) for message in sent[id]])
        ctx, parts = c.coordinator.context, sent[id]
        # Parsing and writing again gives the same bytes: there is no room for anything else.
        assert Advertisement.from_bytes(parts[0], ctx).to_bytes(ctx) == parts[0]
        assert Shares.from_bytes(parts[1], ctx).to_bytes(ctx) == parts[1]
        masked = Masked.from_bytes(parts[2], ctx, c.parameters.encoding.wire_bytes)
        assert masked.to_bytes(ctx) == parts[2]
        assert Confirmation.from_bytes(parts[3], ctx).to_bytes(ctx) == parts[3]
        assert Unmasking.from_bytes(parts[4], ctx).to_bytes(ctx) == parts[4]
        aggregate = c.coordinator.finish()
        assert aggregate.metrics == {"weight": 5 * count, "loss": pytest.approx(5 * fill)}
        # The same vector and metrics at every client, yet the payloads have nothing in common.
        payloads = [
            np.frombuffer(bytes(sent[each][2][-aggregate.parameters.encoding.wire_bytes :]), np.uint8) for each in c.ids
        ]
        for i, one in enumerate(payloads):
            for two in payloads[i + 1 :]:
                assert np.mean(one == two) < 0.08
    assert sizes[0] == sizes[1]
