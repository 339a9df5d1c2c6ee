"""The wall between a site's agent and its SuperNode: two users, and one socket that the second may open."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

import deploy
from client.agent.server import AgentServer
from tests.client.agent.houses import enrol, make_house
from umbel.errors import SiteError

SYSTEMD = Path(deploy.__file__).parent / "systemd"
AGENT, COURIER, STRANGER = 10001, 10002, 10003
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")


@pytest.fixture
def place():
    """A folder that every user may pass through, unlike pytest's, and with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def house(place, sockets):
    table = {"name": "hospital-a", "coordinator": [{"name": "c", "socket": str(sockets / "coordinator.sock")}]}
    made = make_house(place / "site", table)
    enrol([made])
    return made


def opens(path, user):
    """Whether a process of ``user`` with no other group may open the socket."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
            code = 0
        except PermissionError:
            code = 13
        finally:
            os._exit(code)
    return {0: True, 13: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def shape(path):
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


@root_alone
@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed here")
def test_the_supernode_s_user_opens_the_socket_and_nothing_else_of_the_site(place):
    (place / "etc").mkdir()
    names = {"umbel": AGENT, "umbel-courier": COURIER}
    (place / "etc" / "passwd").write_text("".join(f"{name}:x:{i}:{i}::/:/x\n" for name, i in names.items()))
    (place / "etc" / "group").write_text("".join(f"{name}:x:{i}:\n" for name, i in names.items()))
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={place}", SYSTEMD / "umbel.tmpfiles"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = place / "run" / "umbel"
    assert shape(folder) == (0o2710, AGENT, COURIER)
    site = house(place, folder)
    with AgentServer(site):
        path = folder / "coordinator.sock"
        assert shape(path) == (0o660, os.geteuid(), COURIER)
        assert shape(site.desk)[0] == 0o600
        assert opens(path, COURIER)
        assert not opens(path, STRANGER)
        assert not opens(site.desk, COURIER)


@root_alone
def test_a_folder_without_setgid_gives_its_group_too(place):
    folder = place / "run"
    folder.mkdir()
    os.chown(folder, AGENT, COURIER)
    folder.chmod(0o710)
    with AgentServer(house(place, folder)):
        assert shape(folder / "coordinator.sock") == (0o660, os.geteuid(), COURIER)
        assert opens(folder / "coordinator.sock", COURIER)


def test_a_group_that_the_agent_cannot_give_is_one_sentence(place, monkeypatch):
    def refuse(path, user, group):
        raise PermissionError(1, "Operation not permitted")

    folder = place / "run"
    folder.mkdir(mode=0o710)
    folder.chmod(0o710)
    site = house(place, folder)
    monkeypatch.setattr("client.agent.server.os.chown", refuse)

    class Foreign:
        def __init__(self, found):
            self.st_gid, self.st_mode = COURIER, found.st_mode

    plain = Path.stat
    monkeypatch.setattr(
        "pathlib.Path.stat", lambda path, **more: Foreign(plain(path)) if path == folder else plain(path, **more)
    )
    server = AgentServer(site)
    try:
        with pytest.raises(SiteError, match=r"folder's group \(Operation not permitted\): put this agent's user"):
            server.start()
    finally:
        monkeypatch.undo()
        server.stop(0)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o711])
def test_a_folder_that_lets_nobody_or_everybody_in_keeps_its_socket_private(place, mode):
    folder = place / "run"
    folder.mkdir()
    folder.chmod(mode)
    with AgentServer(house(place, folder)):
        assert shape(folder / "coordinator.sock")[0] == 0o600
