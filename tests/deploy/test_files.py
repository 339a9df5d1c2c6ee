"""What stands in deploy/ for people: checked by the tools that read it, where they can be had, and by rules of ours."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import deploy
from tests.deploy.chart import render

DEPLOY = Path(deploy.__file__).parent
CHART = DEPLOY / "helm" / "umbel-coordinator"
BIN = Path(sys.executable).parent
TAGGED = re.compile(r"[a-z0-9./-]+:[A-Za-z0-9._-]+")


def run(*command, **more):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)


def compose(name):
    return yaml.safe_load((DEPLOY / "compose" / name).read_text())


def filled(text):
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


SERVICES = [
    (name, service, body)
    for name in ("coordinator.yaml", "site.yaml")
    for service, body in compose(name)["services"].items()
]


@pytest.mark.parametrize(("name", "service", "body"), SERVICES, ids=[f"{n}:{s}" for n, s, _ in SERVICES])
def test_every_service_has_the_least_rights_and_a_pinned_image(name, service, body):
    assert body["read_only"] is True
    assert body["cap_drop"] == ["ALL"]
    assert body["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc"} & set(body)
    image = filled(body["image"])
    assert TAGGED.fullmatch(image)
    assert not image.endswith(":latest")
    assert body.get("user") in {"10001:10001", "10002:10002"} or "unprivileged" in image


def test_nothing_but_the_proxy_for_sites_and_the_releases_is_reachable_from_outside():
    services = compose("coordinator.yaml")["services"]
    open_to_all = {
        (name, port) for name, body in services.items() for port in body.get("ports", ()) if "127.0.0.1" not in port
    }
    assert open_to_all == {
        ("proxy", "${UMBEL_FLEET_PORT:-8443}:8443"),
        ("release", "${UMBEL_RELEASE_PORT:-8445}:8445"),
    }
    assert compose("coordinator.yaml")["networks"]["inside"]["internal"] is True
    for name in ("superlink", "superexec"):
        assert services[name]["networks"] == ["inside"]


def test_the_agent_has_no_network_and_the_supernode_no_data():
    services = compose("site.yaml")["services"]
    assert services["agent"]["network_mode"] == "none"
    mounts = json.dumps(services["supernode"]["volumes"])
    for secret in ("UMBEL_SITE", "UMBEL_DATA"):
        assert secret not in mounts
    assert all("ports" not in body for body in services.values())


def test_the_agent_and_the_supernode_of_compose_never_share_a_user():
    made = compose("site.yaml")
    agent, node = made["services"]["agent"], made["services"]["supernode"]
    (user, _), (courier, group) = agent["user"].split(":"), node["user"].split(":")
    assert user != courier
    assert not {"group_add", "pid"} & (set(agent) | set(node))
    assert made["volumes"]["socket"]["driver_opts"]["o"] == f"size=1m,uid={user},gid={group},mode=2710"
    for dockerfile in ("Dockerfile", "Dockerfile.cuda"):
        text = (DEPLOY / "docker" / dockerfile).read_text()
        assert f"useradd --uid {user} " in text
        assert f"useradd --uid {courier} " in text
        assert "install -d -o umbel -g umbel-courier -m 2710 /run/umbel" in text
        assert "install -d -o umbel-courier -g umbel-courier -m 0700 /var/lib/umbel-courier" in text


def commands():
    """Every Flower command line of Compose, the chart and the units: program and its options."""
    for _, _, body in SERVICES:
        if body.get("entrypoint", [""])[0].startswith("flower-"):
            yield body["entrypoint"][0], [part.split("=")[0] for part in body["command"]]
    for unit in (DEPLOY / "systemd").glob("*.service"):
        line = re.search(r"^ExecStart=/opt/umbel/bin/(flower-\S+) (.*)$", unit.read_text(), re.M)
        if line:
            yield line[1], re.findall(r"--[a-z-]+", line[2])
    for body in render(CHART):
        for container in body.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            if container.get("command", [""])[0].startswith("flower-"):
                yield container["command"][0], [part.split("=")[0] for part in container["args"]]


def test_every_option_that_flower_is_started_with_exists():
    known = {}
    for program, options in commands():
        if program not in known:
            known[program] = run(BIN / program, "--help").stdout
        for option in options:
            assert option in known[program], (program, option)
    assert set(known) == {"flower-superlink", "flower-superexec", "flower-supernode"}


def test_compose_itself_accepts_them():
    program = shutil.which("docker-compose") or shutil.which("docker-compose-v2")
    if program is None and run("docker", "compose", "version").returncode:
        pytest.skip("docker compose is not installed here")
    command = [program] if program else ["docker", "compose"]
    environment = dict.fromkeys(("UMBEL_TLS", "UMBEL_SITE", "UMBEL_DATA", "UMBEL_BASES", "UMBEL_NODE"), "/tmp") | {
        "UMBEL_COORDINATOR": "c:1",
        "PATH": "/usr/bin:/bin",
    }
    for files in (["coordinator.yaml"], ["site.yaml"], ["site.yaml", "site.gpu.yaml"]):
        chosen = [part for name in files for part in ("-f", DEPLOY / "compose" / name)]
        done = run(*command, *chosen, "config", "-q", env=environment)
        assert done.returncode == 0, done.stderr
        missing = run(*command, *chosen, "config", "-q", env={"PATH": "/usr/bin:/bin"})
        assert missing.returncode != 0  # a variable that must be given has no silent default


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_are_built_from_hashed_wheels_and_run_as_nobody_special(name):
    text = (DEPLOY / "docker" / name).read_text()
    done = run(BIN / "hadolint", DEPLOY / "docker" / name)
    assert done.returncode == 0, done.stdout
    assert "--require-hashes" in text
    assert "--no-index" in text
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", text, re.M)
    last = text[text.rindex("\nFROM ") :]
    assert "USER 10001:10001" in last
    assert last.index("USER") > last.index("COPY")


def objects():
    return [(f"{body['kind']}/{body['metadata']['name']}", body) for body in render(CHART)]


@pytest.mark.parametrize(("name", "body"), objects(), ids=[name for name, _ in objects()])
def test_the_chart_s_objects_fit_the_schema_of_kubernetes(name, body):
    import kubernetes_validate

    kubernetes_validate.validate(body, "1.30", strict=True)


def test_every_pod_has_the_least_rights():
    pods = [body["spec"]["template"]["spec"] for _, body in objects() if "template" in body.get("spec", {})]
    assert len(pods) == 3
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert TAGGED.fullmatch(container["image"])


def test_a_digest_given_reaches_every_image():
    digest = "@sha256:" + "a" * 64
    made = render(CHART, values={"image": {"digest": digest}, "proxy": {"image": {"digest": digest}}})
    images = re.findall(r'"image": "([^"]+)"', json.dumps(made))
    assert len(images) == 4
    assert all(image.endswith(digest) for image in images)


def test_the_chart_proxies_by_the_same_rules():
    proxy = (DEPLOY / "proxy" / "nginx.conf.template").read_text()
    assert (CHART / "files" / "nginx.conf.template").read_text() == proxy
    (found,) = [body for name, body in objects() if name == "ConfigMap/fed-proxy"]
    assert found["data"]["nginx.conf.template"].strip() == proxy.strip()


def test_only_the_fleet_s_port_is_open_to_every_pod():
    rules = {
        body["metadata"]["name"]: body["spec"]["ingress"]
        for name, body in objects()
        if name.startswith("NetworkPolicy")
    }
    everybody = [(name, rule["ports"]) for name, found in rules.items() for rule in found if "from" not in rule]
    assert everybody == [("fed-proxy", [{"port": 8443}])]
    services = [body for _, body in objects() if body["kind"] == "Service"]
    outside = [body["metadata"]["name"] for body in services if body["spec"].get("type", "ClusterIP") != "ClusterIP"]
    assert outside == ["fed-fleet"]


UNITS = sorted(path for path in (DEPLOY / "systemd").iterdir() if path.suffix in {".service", ".target"})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_reads_the_units_and_finds_them_confined(tmp_path):
    for unit in UNITS:
        text = re.sub(r"/opt/umbel/bin/[a-z-]+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    done = run("systemd-analyze", "verify", *sorted(tmp_path.iterdir()))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for unit in tmp_path.glob("*.service"):
        exposure = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit)
        assert exposure.returncode == 0, exposure.stdout[-400:]


def test_the_agent_s_unit_has_no_network_and_the_supernode_s_no_data():
    agent, node = ((DEPLOY / "systemd" / f"umbel-{name}.service").read_text() for name in ("agent", "supernode"))
    assert "PrivateNetwork=yes" in agent
    assert "RestrictAddressFamilies=AF_UNIX\n" in agent
    assert "InaccessiblePaths=-/var/lib/umbel -/srv/umbel\n" in node


def settings(name):
    """Keys of a unit's [Service] with all their values."""
    found = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_two_units_never_share_a_user_nor_a_group():
    agent, node = settings("umbel-agent.service"), settings("umbel-supernode.service")
    owners = [{*unit["User"], *unit["Group"], *unit.get("SupplementaryGroups", ())} for unit in (agent, node)]
    assert owners == [{"umbel"}, {"umbel-courier"}]
    # What is a unit's own state lies in no folder of the other's user.
    assert agent["StateDirectory"] == ["umbel"]
    assert node["StateDirectory"] == ["umbel-courier"]
    assert agent["StateDirectoryMode"] == node["StateDirectoryMode"] == ["0700"]
    assert "FLWR_HOME=/var/lib/umbel-courier" in node["Environment"][0]
    line = (DEPLOY / "systemd" / "umbel.tmpfiles").read_text().splitlines()[-1]
    assert line.split()[:5] == ["d", "/run/umbel", "2710", "umbel", "umbel-courier"]
    assert agent["ReadWritePaths"] == ["/run/umbel"]
    assert "ReadWritePaths" not in node


def test_a_site_s_figures_are_served_where_no_network_is():
    assert settings("umbel-agent.service")["ExecStart"][0].endswith(
        " --metrics unix:/var/lib/umbel/site/run/metrics.sock"
    )
    command = compose("site.yaml")["services"]["agent"]["command"]
    assert command[-2:] == ["--metrics", "unix:/site/run/metrics.sock"]


def test_the_installer_makes_what_the_units_name():
    text = (DEPLOY / "install.sh").read_text()
    assert "for user in umbel umbel-courier; do" in text
    for folder in ("/var/lib/umbel ", "/var/lib/umbel-courier ", "/etc/umbel/node\n"):
        assert f" {folder}" in text
    for file in ("umbel.tmpfiles", "supernode.env.example"):
        assert (DEPLOY / "systemd" / file).is_file()
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "supernode.env.example").read_text().splitlines()
        if not line.startswith("#")
    )
    asked = set(re.findall(r"\$\{(\w+)\}", settings("umbel-supernode.service")["ExecStart"][0]))
    assert example.keys() == asked
    assert example["UMBEL_AGENT"] == "unix:///run/umbel/coordinator.sock"


def test_the_dashboard_asks_for_figures_that_there_are():
    from prometheus_client import CollectorRegistry

    from client.metrics import SiteMetrics, _spent
    from coordinator.metrics import _evaluations, _privacy, _rounds, _states
    from coordinator.release.metrics import ReleaseMetrics

    class Empty:
        def datasets(self):
            return ()

    registry = CollectorRegistry()
    SiteMetrics(registry)
    ReleaseMetrics(registry)
    families = [*registry.collect(), *_spent(Empty())]
    for make in (_states, _rounds, _privacy, _evaluations):
        families += list(make([]))
    known = {"umbel_runs_unreadable", "umbel_site_ledger_trusted"}
    for family in families:
        suffixes = {"counter": ["_total"], "histogram": ["_sum", "_count", "_bucket"]}.get(family.type, [""])
        known |= {family.name + suffix for suffix in suffixes}
    board = json.loads((DEPLOY / "grafana" / "umbel.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bumbel_[a-z_]+", target["expr"])
    }
    assert len(asked) >= 15
    assert asked <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
    "id -u") echo 0 ;;
    "id -Gn umbel-courier") echo "umbel-courier $GROUPS_OF_COURIER" ;;
    "id "*) exit 1 ;;
    *"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "home = $3" > "$3/pyvenv.cfg" ;;
esac
"""


@pytest.mark.parametrize("joined", ["", "umbel"])
def test_the_installer_makes_both_users_and_closes_their_folders(tmp_path, joined):
    bundle, stubs = tmp_path / "bundle", tmp_path / "stubs"
    shutil.copytree(DEPLOY / "systemd", bundle / "deploy" / "systemd")
    shutil.copy(DEPLOY / "install.sh", bundle)
    (bundle / "SHA256SUMS").write_text(run("sha256sum", "install.sh", cwd=bundle).stdout)
    stubs.mkdir()
    for name in ("id", "useradd", "install", "chown", "systemctl", "systemd-tmpfiles", "python3"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    environment = {
        "PATH": f"{stubs}:/usr/bin:/bin",
        "CALLS": str(tmp_path / "calls"),
        "GROUPS_OF_COURIER": joined,
    }
    done = run("sh", bundle / "install.sh", "--prefix", tmp_path / "opt", "--units", env=environment)
    calls = (tmp_path / "calls").read_text().splitlines()
    for user in ("umbel", "umbel-courier"):
        assert f"useradd --system --user-group --home-dir /var/lib/{user} --shell /usr/sbin/nologin {user}" in calls
    if joined:
        assert done.returncode == 1
        assert "umbel-courier is in the group umbel" in done.stderr
        assert not any(call.startswith("systemctl") for call in calls)
        return
    assert done.returncode == 0, done.stderr
    assert "install -d -o root -g root -m 0755 /etc/umbel" in calls
    assert "install -d -o umbel -g umbel -m 0700 /var/lib/umbel /var/lib/umbel/site" in calls
    assert "install -d -o umbel-courier -g umbel-courier -m 0700 /var/lib/umbel-courier /etc/umbel/node" in calls
    assert calls.index("systemd-tmpfiles --create /etc/tmpfiles.d/umbel.conf") < calls.index("systemctl daemon-reload")


def test_the_installer_is_a_shell_script():
    assert run("sh", "-n", DEPLOY / "install.sh").returncode == 0
    for arguments in (["--nonsense"], ["--prefix"], ["--prefix", "relative"]):
        done = run("sh", DEPLOY / "install.sh", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("install.sh: ")
