import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from client.metrics import LedgerCollector, MeasuredSite, SiteMetrics
from client.site import LedgerSummary, Site
from privacy.accounting import Event
from privacy.ledger import Budget, Ledger
from privacy.terms import Mechanism, Relation, Sampler, Unit
from umbel.errors import SiteError
from umbel.wire import MessageType, SecAggStep, TrainOrder, TrainReply

EVENT = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 4.0)


class Fixed(Site):
    """Answers with what it was given, or refuses."""

    def __init__(self, reply):
        self.reply = reply

    def describe(self):
        raise SiteError("Not today.")

    def train(self, order):
        return self.reply

    def secagg(self, stage, step):
        return SecAggStep(step.round, b"12345")

    def evaluate(self, order):
        return {}

    def ledger(self):
        return LedgerSummary(0.0, 1e-5, 0)


def measured(reply, steps=4):
    metrics = SiteMetrics(CollectorRegistry())
    return MeasuredSite(Fixed(reply), metrics, steps), metrics.registry.get_sample_value


def test_bytes_rounds_and_time_of_training():
    reply = TrainReply("spec", np.zeros(7, dtype=np.float32))
    site, value = measured(reply)
    order = TrainOrder(3, "spec", np.zeros(5, dtype=np.float32))
    assert site.train(order) is reply
    assert value("umbel_site_bytes_total", {"direction": "down"}) == 20
    assert value("umbel_site_bytes_total", {"direction": "up"}) == 28
    assert value("umbel_site_round") == 3
    assert value("umbel_site_requests_total", {"kind": "train"}) == 1
    assert value("umbel_site_step_seconds_count") == 1
    assert value("umbel_site_request_seconds_count", {"kind": "train"}) == 1


def test_protocol_messages_are_counted_as_bytes():
    site, value = measured(SecAggStep(1, b"123"))
    site.train(TrainOrder(1, "spec", np.zeros(5, dtype=np.float32), secagg=b"xy"))
    site.secagg(MessageType.SECAGG_MASK, SecAggStep(1, b"1234567"))
    assert value("umbel_site_bytes_total", {"direction": "up"}) == 3 + 5
    assert value("umbel_site_bytes_total", {"direction": "down"}) == 22 + 7
    assert value("umbel_site_requests_total", {"kind": "secagg_mask"}) == 1


def test_a_refusal_is_counted_and_passed_on():
    site, value = measured(None)
    with pytest.raises(SiteError, match="Not today"):
        site.describe()
    assert value("umbel_site_refusals_total", {"kind": "describe", "code": "80"}) == 1


def test_rounds_without_a_fixed_number_of_steps_have_no_step_time():
    site, value = measured(TrainReply("spec", np.zeros(1, dtype=np.float32)), steps=0)
    site.train(TrainOrder(1, "spec", np.zeros(1, dtype=np.float32)))
    assert value("umbel_site_step_seconds_count") == 0


def samples(path, collector=None):
    found = {}
    for metric in (collector or LedgerCollector(path)).collect():
        for sample in metric.samples:
            found[sample.name, sample.labels.get("dataset")] = sample.value
    return found


def test_what_is_left_is_what_the_ledger_says(tmp_path):
    path = tmp_path / "ledger.sqlite"
    collector = LedgerCollector(path)
    assert samples(path, collector) == {("umbel_site_ledger_trusted", None): 1}
    with Ledger.open(path) as ledger:
        ledger.set_budget(Budget(8.0, 1e-6), dataset="chest", unit=Unit.EXAMPLE)
        ledger.reserve(EVENT, dataset="chest", unit=Unit.EXAMPLE)
        spent = ledger.spent(1e-6, dataset="chest", unit=Unit.EXAMPLE)
    found = samples(path, collector)
    assert found["umbel_site_epsilon_spent", "chest"] == spent > 0
    assert found["umbel_site_epsilon_left", "chest"] == 8.0 - spent
    assert found["umbel_site_delta", "chest"] == 1e-6
    assert found["umbel_site_ledger_events", "chest"] == 1
    with Ledger.open(path) as ledger:
        ledger.reserve(EVENT, dataset="chest", unit=Unit.EXAMPLE)
    assert samples(path, collector)["umbel_site_epsilon_spent", "chest"] > spent


def test_a_ledger_that_was_altered_says_so_and_nothing_else(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database at all")
    assert samples(path) == {("umbel_site_ledger_trusted", None): 0}
