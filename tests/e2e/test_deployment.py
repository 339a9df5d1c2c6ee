"""From nothing to an adapter, on loopback with the processes of a deployment: ``make e2e``."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.checkout import ROOT
from tests.e2e.deployed import BASE, BIN, CONNECTION, DATA, cli, deployed, free_port, spent, wait_for
from umbel.cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.flower]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with deployed(tmp_path_factory.mktemp("fed")) as made:
        yield made


@pytest.fixture(scope="module")
def run(federation):
    """The run of the whole module: noise in every step, masks, two rounds, over the proxy."""
    federation.submit(federation.app())
    wait_for(federation.finished, "the end of the run", federation)
    return federation.work / "runs" / "trial"


HIDDEN = (
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/runtime/get-nodes",
    "/health",
    "/",
    "/v1/fleet/",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "//v1/control/list-runs",
    "/v1/control/list-runs?/v1/fleet/pull-messages",
    "/V1/CONTROL/list-runs",
)


@pytest.mark.parametrize("path", HIDDEN)
def test_sites_reach_nothing_of_the_operator_s(federation, path):
    assert federation.status("fleet", path) == 404


def test_each_side_reaches_its_own(federation):
    assert federation.status("fleet", "/v1/fleet/pull-messages") == 415  # reached, and refused for its empty body
    assert federation.status("fleet", "/v1/fleet/pull-messages", method="GET") == 405
    assert federation.status("operator", "/v1/control/list-runs") == 415
    assert federation.status("operator", "/v1/fleet/pull-messages") == 404
    assert federation.status("operator", "/v1/runtime/acquire-task") == 404


def test_plain_http_to_a_tls_port_is_refused(federation):
    with socket.create_connection(("127.0.0.1", federation.ports["fleet"]), timeout=10) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        answer = plain.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")


def supernode(federation, name, *, key, ca):
    process = federation.launch(
        name,
        BIN / "flower-supernode",
        f"--superlink=localhost:{federation.ports['fleet']}",
        f"--root-certificates={ca}",
        f"--auth-supernode-private-key={key}",
        "--port=0",
        "--max-retries=2",
    )
    try:
        return process.wait(timeout=120), (federation.root / "logs" / f"{name}.log").read_text()
    except subprocess.TimeoutExpired:
        return None, (federation.root / "logs" / f"{name}.log").read_text()
    finally:
        federation.kill(name)


def test_a_node_that_nobody_registered_is_turned_away(federation, tmp_path):
    key = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
    before = federation.status("operator", "/health", method="GET")
    code, said = supernode(federation, "stranger", key=key, ca=federation.pki / "public" / "ca.pem")
    assert code not in (0, None), said
    assert "Traceback" not in said
    assert before == federation.status("operator", "/health", method="GET") == 200


def test_preflight_finds_a_site_in_order_and_the_operator_s_interface_closed(federation, capsys):
    site = federation.site("hospital-a")
    capsys.readouterr()
    cli(
        *("preflight", "site", "--home", site, "--disk", 0.01, "--memory", 0.01, "--json"),
        *("--coordinator", f"localhost:{federation.ports['fleet']}", "--ca", site / "tls" / "ca.pem"),
        *("--identity", site / "tls", "--node-key", site / "supernode", "--model", federation.work / BASE),
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["check"] for line in found} >= {"coordinator", "clock", "closed", "certificate", "node key", "base"}
    assert all(line["ok"] for line in found)


def test_the_run_ends_with_every_site_in_every_round(federation, run):
    rounds = federation.metrics().rounds
    assert [(line.round, line.cohort, line.survivors, line.missing, line.rejected) for line in rounds] == [
        (1, 3, 3, 0, 0),
        (2, 3, 3, 0, 0),
    ]
    assert all(line.secagg is not None and line.secagg.stages for line in rounds)
    assert (run / "report.html").stat().st_size > 0


def test_every_site_paid_for_exactly_its_rounds_and_its_log_holds(federation, run, capsys):
    for name in federation.sites:
        paid = spent(federation, name)
        assert len(paid["events"]) == 2
        assert 0 < paid["epsilon"] <= 60.0
        capsys.readouterr()
        cli("site", "log", "verify", federation.site(name))
        assert "nothing was changed" in capsys.readouterr().out
        left = [line for line in federation.log_lines(name) if line["kind"] == "left"]
        assert [line["action"] for line in left if line["cost"]] == ["train", "train"]
        sent = [line["action"] for line in left]
        assert sent.count("secagg_mask") == sent.count("secagg_unmask") == 2
        assert not [line for line in federation.log_lines(name) if line["kind"] == "refused"]


def test_one_altered_line_of_a_log_is_found(federation, run, tmp_path):
    from client.agent.audit_log import verify
    from client.agent.house import House
    from umbel.errors import SiteError

    house = House.open(federation.site("hospital-a"))
    copy = tmp_path / "log"
    shutil.copytree(house.log, copy)
    verify(copy, house.identity().public)
    path = copy / "audit-000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"secagg_mask"', b'"secagg_musk"', 1))
    with pytest.raises(SiteError):
        verify(copy, house.identity().public)


def test_the_adapter_loads_in_peft_and_moved(federation, run):
    found = load_file(run / "adapter" / "adapter_model.safetensors")
    assert found
    assert all(np.isfinite(value).all() for value in found.values())
    assert any(np.abs(value).max() > 0 for name, value in found.items() if "lora_B" in name)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import mllm
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base = AutoModelForImageTextToText.from_pretrained({str(federation.work / BASE)!r})
model = PeftModel.from_pretrained(base, {str(run / "adapter")!r})
print(sum("lora" in name for name, _ in model.named_parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == len(found)


@pytest.fixture(scope="module")
def released(federation, run):
    """The run's adapter, signed, and a server that serves it over mutual TLS; its address."""
    member = federation.coordinator
    done = federation.operator(BIN / "umbel", "release", "publish", "trial", "--member", member, "--name", "scans-lora")
    assert done.returncode == 0, done.stderr
    listen = f"127.0.0.1:{free_port()}"
    federation.launch("release", BIN / "umbel", "release", "serve", "--member", member, "--listen", listen)
    log = federation.root / "logs" / "release.log"
    wait_for(lambda: "Serving releases" in log.read_text(), "the release server", federation)
    yield listen.replace("127.0.0.1", "localhost")
    federation.kill("release")


def test_every_site_pulls_and_verifies_the_release(federation, run, released, tmp_path, capsys):
    for name in federation.sites:
        into = tmp_path / name
        capsys.readouterr()
        cli(
            *("release", "pull", "scans-lora", "--server", released, "--member", federation.site(name)),
            *("--into", into),
        )
        folder = Path(capsys.readouterr().out.strip().replace("\n", ""))
        cli("release", "verify", folder, "--member", federation.site(name))
        pulled, trained = (load_file(path / "adapter_model.safetensors") for path in (folder, run / "adapter"))
        assert pulled.keys() == trained.keys()
        assert all(np.array_equal(pulled[key], trained[key]) for key in trained)
    weights = folder / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert main(["release", "verify", str(folder), "--member", str(federation.site(name))]) == 85


def test_a_stranger_gets_no_release(federation, released, tmp_path, capsys):
    cli("provision", "init", "other", "--pki", tmp_path / "pki")
    cli("provision", "site", "hospital-a", "--pki", tmp_path / "pki", "--folder", tmp_path / "hospital-a")
    capsys.readouterr()
    stranger = ["--server", released, "--member", str(tmp_path / "hospital-a"), "--into", str(tmp_path / "got")]
    assert main(["release", "pull", "scans-lora", *stranger]) == 85
    assert "federation" in capsys.readouterr().err
    assert not list(tmp_path.glob("got/**/*.safetensors"))


def scrape(address):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_a_site_shows_its_own_figures_and_the_coordinator_nobody_s(federation, run):
    shown = scrape(federation.metrics_of("hospital-b"))
    assert 'umbel_site_requests_total{kind="train"} 2.0' in shown
    assert f'umbel_site_epsilon_left{{dataset="{DATA}",unit="example"}}' in shown
    assert "umbel_site_ledger_trusted 1.0" in shown
    done = federation.operator(BIN / "umbel", "metrics", "--once")
    assert done.returncode == 0, done.stderr
    assert 'umbel_rounds_total{run="trial"} 2.0' in done.stdout
    assert 'umbel_updates_total{outcome="survived",run="trial"} 6.0' in done.stdout
    for name in federation.sites:
        assert name not in done.stdout


def test_logs_of_the_run_name_it(federation, run):
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {line.get("run") for line in found} == {"trial"}
    rounds = [line for line in found if line["message"].startswith("Round ")]
    assert [line["round"] for line in rounds] == [1, 2]


def test_a_site_s_state_is_backed_up_while_it_runs_and_a_restore_lowers_nothing(federation, run, tmp_path):
    site, before = federation.site("hospital-c"), spent(federation, "hospital-c")["epsilon"]
    cli("backup", site, tmp_path / "site.tar")
    copy = tmp_path / "copy"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("*.sock"))
    cli("restore", tmp_path / "site.tar", copy)
    cli("site", "log", "verify", copy)
    assert spent(federation, "hospital-c")["epsilon"] == before


def test_a_run_that_no_site_approved_is_refused_in_words(federation, run):
    from deploy.thin import write_thin

    folder = federation.root / "apps" / "secret"
    write_thin(folder, federation.options(run__id="secret", train__amount=3))
    events = [spent(federation, name)["events"] for name in federation.sites]
    federation.submit(folder)
    wait_for(lambda: federation.failed("secret"), "the refusal", federation)
    said = json.loads((federation.work / "runs" / "secret" / "error.json").read_text())
    assert "approved" in json.dumps(said)
    assert [spent(federation, name)["events"] for name in federation.sites] == events
    assert any(line["kind"] == "refused" for line in federation.log_lines("hospital-a"))


def test_a_revoked_site_is_out_at_once(federation, run, released, tmp_path, capsys):
    """Last in this file: hospital-c is gone afterwards."""
    name = "hospital-c"
    site = federation.site(name)
    done = federation.operator(
        BIN / "umbel", "provision", "revoke", name, "--superlink", CONNECTION, "--pki", federation.pki
    )
    assert done.returncode == 0, done.stdout + done.stderr
    capsys.readouterr()
    into = ["--server", released, "--member", str(site), "--into", str(tmp_path / "got")]
    assert main(["release", "pull", "scans-lora", *into]) == 85
    assert not list(tmp_path.glob("got/**/*.safetensors"))
    wait_for(lambda: federation.running[f"supernode-{name}"].poll() is not None, "the end of its SuperNode", federation)
    code, said = supernode(federation, "revoked", key=site / "supernode", ca=site / "tls" / "ca.pem")
    assert code not in (0, None), said
