"""The kill matrix: SIGKILL to one process of a deployment at one moment, seeded; ``make kills``.

Each case: the process is killed when a chosen site's log (or the coordinator's metrics) says that the moment has come,
then started again as a supervisor would. A run that Flower gave up is submitted again under its run.id. Afterwards

* the run has ended with an adapter: bit for bit the unbroken run's up to the rounding of the masked encoding (cases
  without noise), or with every round paid for (cases with noise);
* no ledger shows fewer events than vectors that left under a mask, and none of them twice for one round;
* every log verifies.
"""

import random
import time

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.e2e.deployed import Deployment, cli, spent, wait_for
from tests.federated import make_folder

pytestmark = [pytest.mark.kills, pytest.mark.long, pytest.mark.flower]

STAGES = ("train", "secagg_mask", "secagg_unmask", "checkpoint")
VICTIMS = ("superlink", "superexec", "serverapp", "supernode", "clientapp", "agent")
CASES = [
    pytest.param(
        victim, stage, (row + column) % 2 == 0, id=f"{victim}-{stage}-{'noise' if (row + column) % 2 == 0 else 'exact'}"
    )
    for row, victim in enumerate(VICTIMS)
    for column, stage in enumerate(STAGES)
]
OPEN = "phantoms"
"""Data without a budget, which runs without noise may use."""
ROUNDS = 2
ATTEMPTS = 4
PER_RUN = 240.0


class Federation(Deployment):
    """A deployment whose sites also allow runs without noise, for exact comparisons: on data that has no budget."""

    def policy(self, name):
        body = super().policy(name)
        body["runs"]["privacy"] = ["step", "none"]
        body["data"].append({"name": OPEN, "root": str(self.root / OPEN / name), "columns": body["data"][0]["columns"]})
        return body

    def provision(self):
        super().provision()
        make_folder(self.work / OPEN)
        for name in self.sites:
            make_folder(self.root / OPEN / name)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("kills"), budget=500.0) as made:
        made.provision()
        made.start()
        yield made


def definition(private):
    """Runs of one kind differ by their id alone: every site approves the kind once."""
    if private:
        return {"privacy__noise": "fixed", "privacy__noise_multiplier": 4.0, "privacy__epsilon": 20.0}
    # Plain gradient steps: Adam's would blow the rounding of the masked encoding up, where gradients are near zero.
    return {
        "task__data": OPEN,
        "privacy__unit": "none",
        "train__optimizer": "sgd",
        "train__learning_rate": 0.5,
        "secagg__clip": 5.0,
    }


def started(federation, name, private):
    app = federation.app(
        run__id=name,
        federation__rounds=ROUNDS,
        federation__timeout=100.0,
        secagg__stage_timeout=60.0,
        **definition(private),
    )
    federation.submit(app)
    return app


@pytest.fixture(scope="module")
def whole(federation):
    """The unbroken run without noise."""
    started(federation, "whole", False)
    wait_for(lambda: federation.finished("whole"), "the unbroken run", federation)
    return vector(federation, "whole")


def vector(federation, name):
    arrays = load_file(federation.work / "runs" / name / "adapter" / "adapter_model.safetensors")
    return np.concatenate([arrays[key].ravel() for key in sorted(arrays)])


def asked(federation, site, after):
    """Actions that a site was asked for since line ``after`` of its log."""
    return [line["action"] for line in federation.log_lines(site)[after:] if line["kind"] == "asked"]


def strike(federation, victim, site, chance):
    """SIGKILL, and what a supervisor starts again."""
    time.sleep(chance.random() * 0.5)  # anywhere in the half second after the moment
    if victim in ("superlink", "superexec"):
        federation.kill(victim)
        (federation.start_superlink if victim == "superlink" else federation.start_superexec)()
    elif victim == "agent":
        federation.kill(f"agent-{site}")
        federation.start_agent(site)
    elif victim == "supernode":
        federation.kill(f"supernode-{site}")
        federation.start_supernode(site)
    else:
        word, parent = (
            ("flwr-serverapp", "superexec") if victim == "serverapp" else ("flwr-clientapp", f"supernode-{site}")
        )
        found = wait_for(lambda: federation.of(word, parent), f"a process of {word}", federation, patience=60)
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)


def ended(federation, name):
    """Waits for the end; False when Flower gave the run up, or nothing happens any more."""
    deadline, seen, since = time.monotonic() + PER_RUN, -1, time.monotonic()
    while time.monotonic() < deadline:
        if federation.metrics(name).end is not None:
            return True
        federation.supervise()
        alive = federation.of("flwr-serverapp")
        lines = sum(len(federation.log_lines(site)) for site in federation.sites)
        if alive or lines != seen:
            seen, since = lines, time.monotonic()
        elif time.monotonic() - since > 20:
            return False  # no ServerApp, and no site hears anything
        time.sleep(0.5)
    return False


@pytest.mark.parametrize(("victim", "stage", "private"), CASES)
def test_a_kill_costs_time_and_nothing_else(federation, request, victim, stage, private):
    whole = None if private else request.getfixturevalue("whole")
    name = f"{victim}-{stage}"
    chance = random.Random(name)
    site = chance.choice(federation.sites)
    logged = {each: len(federation.log_lines(each)) for each in federation.sites}
    booked = {each: len(spent(federation, each)["events"]) for each in federation.sites}

    app = started(federation, name, private)
    if stage == "checkpoint":
        wait_for(lambda: federation.metrics(name).rounds, "the first round", federation)
    else:
        wait_for(lambda: stage in asked(federation, site, logged[site]), stage, federation)
    strike(federation, victim, site, chance)

    submissions = 1
    while not ended(federation, name):
        assert submissions < ATTEMPTS, federation.tails()
        for process in federation.of("flwr-serverapp"):
            process.kill()  # one that hangs on what is gone holds the run's folder
        federation.submit(app)
        submissions += 1

    check(federation, name, site, logged, booked, whole, private)


def check(federation, name, site, logged, booked, whole, private):
    rounds = federation.metrics(name).rounds
    assert [line.round for line in rounds] == list(range(1, ROUNDS + 1))
    assert [line.survivors for line in rounds] == [3] * ROUNDS
    found = vector(federation, name)
    assert np.isfinite(found).all()
    if whole is not None:
        # Each site's update in each sum exactly once: one missing or doubled would show far above the rounding.
        assert np.abs(found - whole).max() < 1e-3 * np.abs(whole).max()
    for each in federation.sites:
        cli("site", "log", "verify", federation.site(each))
        lines = federation.log_lines(each)[logged[each] :]
        paid = [cost for line in lines if line["kind"] == "left" for cost in line["cost"]]
        new = len(spent(federation, each)["events"]) - booked[each]
        if private:
            assert ROUNDS <= new <= ROUNDS + (each == site)  # a kill between the book and the training costs a round
            assert len(paid) <= new
        else:
            assert new == 0
