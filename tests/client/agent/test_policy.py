from dataclasses import replace
from datetime import UTC, datetime, time

import numpy as np
import pytest

from client.agent.approval import Approvals
from client.agent.audit_log import AuditLog
from client.agent.bundle import Bundle
from client.agent.definition import RunDefinition
from client.agent.house import init
from client.agent.policy import Hours, SitePolicy, read_policy
from client.agent.rules import check_hours, check_order, objections, site_rank
from tests.client.agent.houses import COORDINATOR, flat_options, make_house, policy_for
from umbel.config import RunConfig
from umbel.errors import DeployError, SiteError
from umbel.wire import TrainOrder, secure_order

NO_CODE, CODE = Bundle("a" * 64, False), Bundle("b" * 64, True)


def definition(root, bundle=NO_CODE, **changes):
    return RunDefinition(COORDINATOR, RunConfig.from_flat(flat_options(root, **changes)), bundle)


def test_the_policy_of_these_tests_allows_their_run(site):
    assert objections(site(), definition(site.root)) == ()


def test_the_starter_denies_everything_but_a_dry_run(tmp_path):
    house = init(tmp_path / "site", "hospital-a")
    assert house.policy.dry_run
    assert house.policy.coordinators == house.policy.data == house.policy.models == ()
    found = " ".join(objections(house, definition(tmp_path)))
    for what in [
        "Coordinator",
        "model",
        "data",
        "strategy",
        "rank",
        "rounds",
        "steps",
        "unmasked",
        "approved",
        "noise",
    ]:
        assert what in found, what


def test_init_keeps_what_is_there(tmp_path):
    first = init(tmp_path / "site", "hospital-a")
    (tmp_path / "site" / "site.toml").write_text('name = "hospital-a"\ndry-run = false\n')
    again = init(tmp_path / "site", "another")
    assert again.identity().public == first.identity().public
    assert again.secret("x") == first.secret("x") != first.secret("y")
    assert again.policy.name == "hospital-a"
    assert not again.policy.dry_run
    for name in ("seal.key", "identity/identity.key"):
        assert (tmp_path / "site" / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "cannot be read"),
        ('name = "a"\nsecret = 1', "secret: this key is not known"),
        ('name = "../a"', "name"),
        ('name = "a"\n[runs]\nrank = "8"', "runs.rank"),
        ('name = "a"\n[runs]\nrank = -1', "runs.rank"),
        ('name = "a"\n[runs]\nprivacy = ["never"]', "runs.privacy"),
        ('name = "a"\n[[coordinator]]\nname = "c"', "neither a socket nor callers"),
        ('name = "a"\n[[data]]\nname = "d"', "has no root"),
        ('name = "a"\n[[data]]\nname = "d"\nroot = "/d"\nepsilon = inf', "epsilon"),
        ('name = "a"\n[[data]]\nname = "d"\nroot = "/d"\npart = -1', "part"),
        ('name = "a"\n[[data]]\nname = "d"\nroot = "/d"\n[[data]]\nname = "d"\nroot = "/e"', "'d' stands twice"),
        ('name = "a"\n[listen]\naddress = "h:1"', "listen.address needs listen.tls"),
        ('name = "a"\n[hours]\nzone = "Moon/Base"', "Moon/Base"),
        ('name = "a"\nbundles = ["xyz"]', "no hash"),
        ('name = "a"\n[[model]]\nname = "m"\nhash = "short"', "hash"),
        ('name = "a"\n[limits]\nmessage = 100000', "limits.message"),
    ],
)
def test_a_policy_that_is_not_understood_allows_nothing(tmp_path, text, said):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(SiteError, match="mend it") as caught:
        read_policy(tmp_path / "site.toml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "run", "said"),
    [
        ({"coordinator": [{"name": "other", "socket": "o.sock"}]}, {}, "Coordinator 'consortium'"),
        ({}, {"bundle": CODE}, "carries code"),
        ({}, {"bundle": Bundle("", True)}, "carries code"),
        ({"model": [{"name": "other"}]}, {}, "model"),
        ({}, {"model__size": "tiny"}, ":tiny' is not allowed"),
        ({}, {"model__weights": "/etc"}, "=/etc' is not allowed"),
        ({}, {"train__distill": "teacher", "train__teacher": "/srv/other"}, "The model '/srv/other'"),
        ({}, {"task__data": "/etc"}, "The data '/etc'"),
        ({}, {"task__data": "../data"}, "The data '../data'"),
        ({}, {"task__name": "easy-vqa"}, "of task easy-vqa"),
        ({"runs__strategies": []}, {}, "strategy 'fedit'"),
        ({"runs__rank": 1}, {}, "LoRA rank 2 is above the 1"),
        ({"runs__rounds": 2}, {}, "number of rounds 3"),
        ({"runs__steps": 1}, {}, "number of local steps 2"),
        ({}, {"evaluate__clients": True}, "evaluate.clients"),
        ({"runs__privacy": ["step"]}, {}, "adds no noise"),
        (
            {},
            {"privacy__unit": "client", "privacy__place": "coordinator", "privacy__sampler": "full"},
            "its noise at 'coordinator'",
        ),
        ({"runs__secure_aggregation": True}, {}, "unmasked"),
        ({"runs__cohort": 5}, {"federation__minimum": 2}, "A sum of 2 sites"),
        (
            {"runs__cohort": 4},
            {"secagg__enabled": True, "federation__clients": 5},
            "A sum of 3 sites would count, and this site wants at least 4: raise secagg.minimum",
        ),
        ({"runs__corrupt": 0.3, "runs__cohort": 3}, {"secagg__enabled": True, "federation__clients": 5}, "colluding"),
        ({}, {"privacy__unit": "example", "privacy__delta": 1e-3}, "delta 0.001"),
        ({"runs__approval": "each"}, {}, "Nobody at this site has approved"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(site, policy, run, said):
    bundle = run.pop("bundle", NO_CODE) if "bundle" in run else NO_CODE
    found = objections(site(**policy), definition(site.root, bundle, **run))
    assert any(said in sentence for sentence in found), found
    assert all(sentence.endswith(".") for sentence in found)


def test_a_site_that_allows_less_trains_at_less_where_ranks_may_differ(site):
    house = site(runs__rank=1)
    mixed = definition(site.root, strategy__ranks="mixed")
    assert site_rank(house.policy, mixed.config) == 1
    assert objections(house, mixed) == ()
    assert site_rank(site().policy, definition(site.root).config) is None


def test_a_column_that_is_not_allowed_is_refused(site):
    table = policy_for(site.root)
    table["data"][0] |= {"part": 0}
    house = make_house(site.root / "site", table)
    natural = definition(site.root, task__partition="natural")
    assert any("column 'site'" in sentence for sentence in objections(house, natural))
    table["data"][0]["columns"].append("site")
    assert objections(make_house(site.root / "other", table), natural) == ()
    table["data"][0]["columns"].remove("image")
    assert any("column 'image'" in s for s in objections(make_house(site.root / "third", table), natural))


def test_a_data_set_without_a_budget_gives_nothing_noised_away(site):
    table = policy_for(site.root)
    table["data"][1]["epsilon"] = 0.0
    house = make_house(site.root / "site", table)
    assert any("no privacy budget" in s for s in objections(house, definition(site.root, privacy__unit="example")))


def test_code_runs_only_from_an_approved_bundle(site):
    house = site(bundles=[CODE.hash])
    assert objections(house, definition(site.root, CODE)) == ()
    other = Bundle("c" * 64, True)
    assert any("carries code" in s for s in objections(house, definition(site.root, other)))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"pooled": True}, "its own only"),
        ({"amount": 1}, "leave the amount out"),
        ({"round": 4}, "the run has 3"),
        ({"round": 0}, "the run has 3"),
    ],
)
def test_an_order_beyond_its_run_is_refused(site, facts, said):
    run = definition(site.root)
    order = replace(TrainOrder(1, "s", np.zeros(1, np.float32)), **facts)
    with pytest.raises(SiteError, match=said):
        check_order(site().policy, run.config, order, 48)


def test_epochs_count_as_the_steps_that_they_are(site):
    run = definition(site.root, train__unit="epochs", train__amount=1)
    order = TrainOrder(1, "s", np.zeros(1, np.float32))
    check_order(site().policy, run.config, order, 16)
    with pytest.raises(SiteError, match="would take 5 local steps and this site allows 4"):
        check_order(site().policy, run.config, order, 17)


def test_a_cohort_that_is_too_small_and_a_plain_order_are_refused(site):
    secure = {"secagg__enabled": True, "federation__clients": 5, "secagg__minimum": 4}
    run, policy = definition(site.root, **secure), site(runs__cohort=4).policy
    order = TrainOrder(1, "s", np.zeros(1, np.float32), secagg=secure_order("r", 4, 1))
    check_order(policy, run.config, order, 48)
    with pytest.raises(SiteError, match="A cohort of 3 was invited and this site takes part among at least 4"):
        check_order(policy, run.config, replace(order, secagg=secure_order("r", 3, 1)), 48)
    with pytest.raises(SiteError, match="masked ones only"):
        check_order(policy, run.config, replace(order, secagg=None), 48)


NIGHT = Hours(days=("fri",), start=time(19), end=time(6), zone="Europe/Vienna")


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        ("2026-11-20T18:30", True),  # Friday 19:30 in Vienna
        ("2026-11-20T17:59", False),
        ("2026-11-21T04:59", True),  # Saturday 05:59: the night that began on Friday
        ("2026-11-21T05:00", False),
        ("2026-11-20T03:00", False),  # Friday 04:00: the night that began on Thursday
        ("2026-11-21T18:30", False),
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_began(moment, open_):
    assert NIGHT.admit(datetime.fromisoformat(moment).replace(tzinfo=UTC)) is open_


def test_outside_its_hours_a_site_trains_nothing():
    policy = SitePolicy.model_validate({"name": "a", "hours": {"days": ["mon"]}})
    check_hours(policy, datetime(2026, 11, 23, 12, tzinfo=UTC))
    with pytest.raises(SiteError, match=r"trains only on mon from 00:00 to 00:00 \(UTC\)"):
        check_hours(policy, datetime(2026, 11, 24, 0, 0, tzinfo=UTC))


def test_a_run_folder_never_leads_elsewhere(site):
    house = site()
    assert house.run("a", "1") == house.state / "runs" / "a" / "1"
    for name in ("..", "a/b", "", ".hidden", "a" * 65, "a\x00b", "-x"):
        with pytest.raises(SiteError, match="cannot name a run"):
            house.run("a", name)


@pytest.mark.parametrize("name", ["seal.key", "identity/identity.key"])
def test_a_key_that_others_may_read_is_refused(site, name):
    house = site()
    (house.folder / name).chmod(0o644)
    with pytest.raises(DeployError, match="open to others"):
        (house.secret if name == "seal.key" else lambda _: house.identity())("x")


class TestApproval:
    @pytest.fixture
    def house(self, site):
        return site(runs__approval="each")

    def approve(self, house, run, days=1.0):
        identity = house.identity()
        log = AuditLog(house.log, identity)
        return Approvals(house.approvals, house.policy.name).approve(run, identity, log, person="Dr. A", days=days)

    def test_it_holds_for_exactly_one_definition(self, house, site):
        run = definition(site.root)
        approval = self.approve(house, run)
        assert approval.person == "Dr. A"
        assert objections(house, run) == ()
        for changed in (
            definition(site.root, train__amount=1),
            replace(run, coordinator="other"),
            replace(run, bundle=CODE),
            definition(site.root, run__seed=1),
        ):
            assert any("approved" in sentence for sentence in objections(house, changed))
        assert objections(house, definition(site.root, run__id="another-name")) == ()

    def test_it_ends(self, house, site):
        run = definition(site.root)
        approval = self.approve(house, run)
        with pytest.raises(SiteError, match="ended on"):
            Approvals(house.approvals, "hospital-a").find(run, house.identity().public, approval.until)

    @pytest.mark.parametrize("days", [0.0, -1.0, float("nan"), float("inf")])
    def test_it_needs_an_end(self, house, site, days):
        with pytest.raises(SiteError, match="cannot be given"):
            self.approve(house, definition(site.root), days=days)

    def test_an_altered_or_foreign_one_does_not_count(self, house, site):
        import json

        run = definition(site.root)
        self.approve(house, run)
        path = house.approvals / f"{run.hash}.json"
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "until": "2999-01-01T00:00:00+00:00"}))
        assert any("does not carry" in s for s in objections(house, run))
        other = definition(site.root, run__seed=7)
        (house.approvals / f"{other.hash}.json").write_text(json.dumps(body))
        assert any("is for another run" in s for s in objections(house, other))

    def test_it_is_in_the_log_and_can_be_withdrawn(self, house, site):
        from client.agent.audit_log import read_lines

        run = definition(site.root)
        self.approve(house, run)
        Approvals(house.approvals, "hospital-a").withdraw(run.hash, AuditLog(house.log, house.identity()), person="B")
        assert [(line["kind"], line["definition"]) for line in read_lines(house.log)] == [
            ("approved", run.hash),
            ("withdrawn", run.hash),
        ]
        assert any("Nobody" in sentence for sentence in objections(house, run))
        log = AuditLog(house.log, house.identity())
        with pytest.raises(SiteError, match="no approval"):
            Approvals(house.approvals, "hospital-a").withdraw("../site", log, person="")


def test_a_definition_does_not_depend_on_how_options_are_written(tmp_path):
    flat = flat_options(tmp_path)
    nested = RunConfig.from_nested(RunConfig.from_flat(flat).to_nested())
    assert RunDefinition(COORDINATOR, nested, NO_CODE).hash == definition(tmp_path).hash
