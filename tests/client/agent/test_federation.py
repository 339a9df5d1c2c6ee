"""A whole federation whose sites are agents: the real ServerApp and ClientApp, masks, noise, books."""

import json

import pytest

from client.agent.audit_log import read_lines
from client.agent.desk import budgets, verify_books
from client.agent.server import AgentServer
from privacy.ledger import Ledger
from tests.client.agent.houses import NOISED, enrol, make_house, policy_for
from tests.federated import options, run_in_memory
from umbel.errors import FederationError

SITES = 3
SECURE = {"secagg__enabled": True, "federation__clients": SITES, "federation__minimum": SITES, "federation__rounds": 2}


@pytest.fixture
def agents(agent_root, tmp_path_factory, monkeypatch):
    """Three running agents, each with its own part of the data, its own keys and one signed roster."""
    started = []

    def make(**changes):
        houses = []
        for index in range(SITES):
            changes = {"runs__secure_aggregation": True, "runs__cohort": SITES, **changes}
            table = policy_for(agent_root, f"hospital-{index}", **changes)
            for data in table["data"]:
                data["part"] = index
            houses.append(make_house(tmp_path_factory.mktemp("f"), table))
        enrol(houses)
        monkeypatch.setenv("UMBEL_ROSTER", str(houses[0].keys))
        for house in houses:
            server = AgentServer(house)
            server.start()
            started.append(server)
        return houses

    yield make
    for server in started:
        server.stop(1)


def noised(root):
    """The data that have a budget."""
    return {"task__data": str(root / NOISED)}


def couriers(houses):
    """Every node's configuration names its agent and nothing else."""

    def hook(grid):
        for index, house in enumerate(houses):
            grid.contexts[index + 1].node_config = {"agent": f"unix:{house.folder / 'a.sock'}"}

    return hook


@pytest.mark.slow
def test_sites_with_agents_sum_masked_and_noised_updates(agents, agent_root, tmp_path):
    houses = agents(runs__privacy=["step"])
    flat = options(agent_root, **SECURE, **noised(agent_root), privacy__unit="example", privacy__place="step")
    flat |= {"run.directory": str(tmp_path / "runs")}
    path = run_in_memory(flat, grid_hook=couriers(houses))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert [line["survivors"] for line in rounds] == [SITES, SITES]
    for house in houses:
        verify_books(house)
        with Ledger.open(house.ledger, create=False) as ledger:
            booked = [entry for entry in ledger.entries() if entry.kind == "reserved"]
        assert [entry.round for entry in booked] == [1, 2]
        assert {entry.run for entry in booked} == {"consortium/t"}
        said = [line for line in read_lines(house.log) if line["kind"] in ("asked", "left", "refused")]
        assert not [line for line in said if line["kind"] == "refused"]
        actions = [line["action"] for line in said if line["kind"] == "left"]
        one = ["train", "secagg_share", "secagg_mask", "secagg_confirm", "secagg_unmask"]
        assert actions == ["describe", *one, *one]
        # No plain update ever left: after training only the first protocol message did.
        sizes = {line["action"]: line["bytes"] for line in said if line["kind"] == "left"}
        assert sizes["train"] < 1000 < sizes["secagg_mask"]


@pytest.mark.slow
def test_noise_that_all_sites_make_together_is_booked_by_each(agents, agent_root, tmp_path):
    houses = agents(runs__privacy=["secagg"])
    for house in houses:
        assert budgets(house)[0]["epsilon"] == 0
    flat = options(
        agent_root,
        **SECURE,
        **noised(agent_root),
        privacy__unit="client",
        privacy__place="secagg",
        privacy__sampler="full",
        privacy__epsilon=8.0,
    )
    run_in_memory(flat | {"run.directory": str(tmp_path / "runs")}, grid_hook=couriers(houses))
    for house in houses:
        verify_books(house)
        client = next(row for row in budgets(house) if row["unit"] == "client")
        assert client["releases"] == 2
        assert 5 < client["epsilon"] <= 8.0
        # The same two sums for one line of the site's data: it changes its client's update, and add-remove of clients
        # says only what a client's absence would change.
        example = next(row for row in budgets(house) if row["unit"] == "example" and row["data"] == client["data"])
        assert example["releases"] == 2
        assert client["epsilon"] < example["epsilon"] <= 20.0
        paid = [line for line in read_lines(house.log) if line.get("cost")]
        assert [line["action"] for line in paid] == ["secagg_unmask"] * 2


@pytest.mark.slow
def test_a_run_that_no_site_allows_ends_with_their_reason(agents, agent_root, tmp_path):
    houses = agents(runs__approval="each")
    flat = options(agent_root, **SECURE) | {"run.directory": str(tmp_path / "runs")}
    with pytest.raises(FederationError, match=r"Nobody at this site has approved|adds no noise"):
        run_in_memory(flat, grid_hook=couriers(houses))
    for house in houses:
        verify_books(house)
        assert [line["kind"] for line in read_lines(house.log)] == ["started", "asked", "refused"]
