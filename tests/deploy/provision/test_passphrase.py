"""The authority's keys under a passphrase: what needs it, what does without, and how a wrong one is refused."""

import os
import pty
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives import serialization

from deploy.provision import Authority
from deploy.provision.passphrase import Passphrase, read_passphrase
from umbel.cli.main import main
from umbel.errors import DeployError
from umbel.files import write_atomic

RIGHT, WRONG = b"correct horse battery", b"correct horse staple!"
KEYS = ("ca.key", "authority.key")


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """A thousand hashes instead of 600,000, save where the real number is looked at."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("deploy.provision.passphrase.ITERATIONS", 1000)


def of(secret):
    return Passphrase(lambda: secret)


@pytest.fixture
def sealed(tmp_path):
    authority, made = Authority.init(tmp_path / "pki", "demo", passphrase=of(RIGHT))
    assert made
    return authority.folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def file(path, secret):
    write_atomic(path, secret + b"\n", mode=0o600)
    return str(path)


def test_both_keys_are_encrypted_and_openssl_reads_them(sealed):
    for name in KEYS:
        data = (sealed / name).read_bytes()
        assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE((sealed / name).stat().st_mode) == 0o600
        assert serialization.load_pem_private_key(data, RIGHT)
        with pytest.raises(ValueError, match=r"(?i)password|decrypt"):
            serialization.load_pem_private_key(data, WRONG)


@pytest.mark.slow
def test_openssl_itself_opens_a_key_and_sees_how_often_it_is_hashed(sealed):
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed here")
    for name in KEYS:
        command = [openssl, "pkey", "-in", str(sealed / name), "-passin", f"pass:{RIGHT.decode()}", "-noout"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert subprocess.run([*command[:-2], "pass:no", "-noout"], capture_output=True, check=False).returncode != 0
        shown = subprocess.run([openssl, "asn1parse", "-in", str(sealed / name)], capture_output=True, check=True)
        assert f"INTEGER           :{600_000:06X}".encode() in shown.stdout


def test_members_are_enrolled_renewed_and_revoked_with_it_asked_once(sealed):
    asked = []
    authority = Authority(sealed, Passphrase(lambda: asked.append(1) or RIGHT))
    authority.enrol("site", "hospital-a")
    assert authority.renew(["hospital-a"]) == ["hospital-a"]
    authority.revoke("hospital-a")
    assert asked == [1]


@pytest.mark.parametrize(
    ("passphrase", "said"),
    [
        (None, r"ca\.key is encrypted: give its passphrase with --passphrase-file"),
        (of(WRONG), r"The passphrase does not open .*ca\.key"),
        (of(b"short"), r"has 5 bytes, expected 12 to 1023"),
    ],
)
def test_without_the_right_one_nothing_changes(sealed, passphrase, said):
    before = content(sealed)
    authority = Authority(sealed, passphrase)
    for change in (
        lambda: authority.enrol("site", "hospital-a"),
        lambda: authority.renew(),
        lambda: authority.note_node("hospital-a", "1"),
    ):
        with pytest.raises(DeployError, match=said) as caught:
            change()
        assert "\n" not in str(caught.value)
    assert content(sealed) == before


def test_looking_needs_none(sealed):
    authority = Authority(sealed)
    assert authority.index().federation == "demo"
    assert len(authority.fingerprint) == 64


def test_an_authority_that_is_there_is_kept_with_its_passphrase(sealed):
    before = content(sealed)
    again, made = Authority.init(sealed, "demo", passphrase=of(WRONG))
    assert not made
    assert content(sealed) == before
    assert again.fingerprint == Authority(sealed).fingerprint


def test_it_is_changed_and_taken_away_and_certificates_stay(sealed):
    Authority(sealed, of(RIGHT)).enrol("site", "hospital-a")
    certificates = content(sealed / "sites"), content(sealed / "public")
    Authority(sealed, of(RIGHT)).encrypt(of(WRONG))
    with pytest.raises(DeployError, match="does not open"):
        Authority(sealed, of(RIGHT)).renew(["hospital-a"])
    Authority(sealed, of(WRONG)).encrypt(Passphrase())
    assert (content(sealed / "sites"), content(sealed / "public")) == certificates
    assert Authority(sealed).renew(["hospital-a"]) == ["hospital-a"]


def test_a_change_that_was_cut_off_is_finished_by_the_same_command(sealed, monkeypatch):
    from deploy.provision import keyring

    write, done = keyring.write_atomic, []

    def once(path, data, mode):
        if done:
            raise OSError("power")
        done.append(path)
        write(path, data, mode=mode)

    monkeypatch.setattr(keyring, "write_atomic", once)
    with pytest.raises(OSError, match="power"):
        Authority(sealed, of(RIGHT)).encrypt(of(WRONG))
    monkeypatch.setattr(keyring, "write_atomic", write)
    with pytest.raises(DeployError, match="does not open"):
        Authority(sealed, of(RIGHT)).renew()
    Authority(sealed, of(RIGHT)).encrypt(of(WRONG))
    Authority(sealed, of(WRONG)).enrol("site", "hospital-a")


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_another_authority_is_refused(sealed, tmp_path, name):
    other, _ = Authority.init(tmp_path / "other", "demo", passphrase=of(RIGHT))
    (sealed / name).write_bytes((other.folder / name).read_bytes())
    before = content(sealed)
    with pytest.raises(DeployError, match=rf"{name} is not the key of public/"):
        Authority(sealed, of(RIGHT)).renew()
    assert content(sealed) == before


def test_a_passphrase_file_is_private_and_long_enough(tmp_path):
    path = tmp_path / "secret"
    file(path, RIGHT + b"\r")
    assert read_passphrase(path) == RIGHT
    path.chmod(0o644)
    with pytest.raises(DeployError, match=r"open to others \(mode 0644\)"):
        read_passphrase(path)
    file(path, b"")
    with pytest.raises(DeployError, match="has 0 bytes"):
        read_passphrase(path)
    with pytest.raises(DeployError, match="cannot be read"):
        read_passphrase(tmp_path / "none")


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115  # no terminal: nothing is asked
    pki, right, wrong = str(tmp_path / "pki"), file(tmp_path / "right", RIGHT), file(tmp_path / "wrong", WRONG)
    assert main(["provision", "init", "demo", "--pki", pki, "--passphrase-file", right]) == 0
    assert main(["provision", "site", "a", "--pki", pki, "--passphrase-file", right]) == 0
    assert main(["provision", "list", "--pki", pki]) == 0
    assert main(["provision", "renew", "a", "--pki", pki]) == DeployError.exit_code
    assert "is encrypted: give its passphrase" in capsys.readouterr().err
    assert main(["provision", "revoke", "a", "--pki", pki, "--passphrase-file", wrong]) == DeployError.exit_code
    assert "does not open" in capsys.readouterr().err
    command = ["provision", "passphrase", "--pki", pki, "--passphrase-file", right]
    assert main(command) == DeployError.exit_code
    assert "in a terminal only" in capsys.readouterr().err
    assert main([*command, "--new-passphrase-file", wrong]) == 0
    assert main(["provision", "revoke", "a", "--pki", pki, "--passphrase-file", wrong]) == 0
    assert main(["provision", "passphrase", "--pki", pki, "--passphrase-file", wrong, "--none"]) == 0
    assert main(["provision", "renew", "--pki", pki]) == 0


@pytest.mark.slow
def test_a_terminal_is_asked_without_an_echo(tmp_path):
    """A real pseudo-terminal: the passphrase is asked for twice, does not show, and opens the keys afterwards."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "umbel", "provision", "init", "demo", "--pki", str(tmp_path / "pki"), "--encrypt"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    shown = b""
    for question in (b"Passphrase of the authority:", b"Repeat"):
        while question not in shown:
            shown += os.read(parent, 1024)
        time.sleep(0.2)  # the echo is switched off around the question
        os.write(parent, RIGHT + b"\n")
    with suppress(OSError):  # Linux ends a terminal whose other side is closed this way
        while piece := os.read(parent, 1024):
            shown += piece
    os.close(parent)
    assert process.wait(timeout=60) == 0, shown
    assert RIGHT not in shown
    Authority(tmp_path / "pki", of(RIGHT)).enrol("site", "a")
