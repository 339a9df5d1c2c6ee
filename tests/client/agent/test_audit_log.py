import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.agent.audit_log import GENESIS, MAX_LINE, AuditLog, Head, read_lines, segments, sign_line, verify
from privacy.secagg import Identity
from umbel.errors import SiteError

SIGNER = Identity(1, bytes(range(32)))
OTHER = Identity(2, bytes(32))


def written(folder, lines=6, rotate=64 << 20):
    log = AuditLog(folder, SIGNER, rotate=rotate)
    for number in range(lines):
        log.append("asked", action="train", round=number, text="ü" * number)
    return log


def test_lines_are_chained_and_signed(tmp_path):
    log = written(tmp_path / "log", 3)
    assert verify(tmp_path / "log", SIGNER.public) == log.head
    lines = list(read_lines(tmp_path / "log"))
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert lines[0]["previous"] == GENESIS
    assert [line["kind"] for line in lines] == ["asked"] * 3
    assert lines[2]["text"] == "üü"
    for path in (tmp_path / "log").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_an_empty_log_is_a_log(tmp_path):
    AuditLog(tmp_path, SIGNER)
    assert verify(tmp_path, SIGNER.public) == Head()


def test_rotation_keeps_the_chain(tmp_path):
    log = written(tmp_path, 20, rotate=1500)
    assert len(segments(tmp_path)) > 3
    assert all(path.stat().st_size <= 1500 for path in segments(tmp_path))
    assert verify(tmp_path, SIGNER.public) == log.head
    assert AuditLog(tmp_path, SIGNER).append("asked").number == 21
    segments(tmp_path)[1].unlink()
    with pytest.raises(SiteError, match=r"lacks its file audit-000002"):
        verify(tmp_path, SIGNER.public)


def rewrite(folder, change):
    """Applies ``change`` to the list of raw lines."""
    path = segments(folder)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def resigned(lines):
    """Somebody without the site's key writes a line in proper form."""
    body = json.loads(lines[2])
    del body["signature"]
    return [*lines[:2], sign_line({**body, "round": 99}, OTHER), *lines[3:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:2], lines[2].replace(b'"round":2', b'"round":3'), *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b'"kind"', b' "kind"'), *lines[3:]],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: lines[:1],
        lambda lines: [],
        lambda lines: [*lines[:-1], lines[-1][:-1]],
        lambda lines: [*lines[:-1], lines[-1][:-20]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, b"{}\n"],
        lambda lines: [*lines, b"[]\n"],
        lambda lines: [*lines, b"\xff\xfe\n"],
        lambda lines: [b"[" * 100_000 + b"\n", *lines],
        resigned,
    ],
)
def test_every_change_is_found(tmp_path, change):
    written(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(SiteError):
        verify(tmp_path, SIGNER.public)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_altered_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    written(folder, 3)
    path = data.draw(st.sampled_from([*segments(folder), folder / "head.json"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(SiteError):
        verify(folder, SIGNER.public)


def test_another_site_s_log_is_not_taken(tmp_path):
    written(tmp_path)
    with pytest.raises(SiteError, match="is another key now"):
        verify(tmp_path, OTHER.public)


def test_an_older_head_shows_lines_that_it_does_not_know(tmp_path):
    log = written(tmp_path, 2)
    before = (tmp_path / "head.json").read_bytes()
    log.append("asked")
    log.append("left")
    (tmp_path / "head.json").write_bytes(before)
    with pytest.raises(SiteError, match="its head does not know"):
        verify(tmp_path, SIGNER.public)


def test_an_older_copy_of_everything_is_found_by_what_was_noted_elsewhere(tmp_path):
    written(tmp_path, 2)
    copy = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    noted = AuditLog(tmp_path, SIGNER).append("left")
    assert verify(tmp_path, SIGNER.public, noted=noted) == noted
    for name, content in copy.items():
        (tmp_path / name).write_bytes(content)
    assert verify(tmp_path, SIGNER.public).number == 2  # nothing inside can show it
    with pytest.raises(SiteError, match="was noted elsewhere"):
        verify(tmp_path, SIGNER.public, noted=noted)
    with pytest.raises(SiteError, match="not the one that was noted"):
        verify(tmp_path, SIGNER.public, noted=Head(2, "0" * 64))


def test_a_deleted_head_or_log_is_found(tmp_path):
    written(tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(SiteError, match=r"has no head.json"):
        AuditLog(tmp_path, SIGNER)
    written(tmp_path / "second")
    segments(tmp_path / "second")[0].unlink()
    with pytest.raises(SiteError, match="lost lines at its end"):
        AuditLog(tmp_path / "second", SIGNER)


def test_nothing_is_written_to_a_log_that_was_changed_meanwhile(tmp_path):
    log = written(tmp_path)
    rewrite(tmp_path, lambda lines: [lines[0].replace(b'"round":0', b'"round":1'), *lines[1:]])
    other = AuditLog.__new__(AuditLog)
    other.__dict__.update(log.__dict__)
    (tmp_path / "head.json").write_text("{}")
    with pytest.raises(SiteError, match="does not carry this site's signature"):
        log.append("left")


def test_a_crash_in_the_middle_of_a_line_loses_only_that_line(tmp_path):
    log = written(tmp_path, 3)
    with segments(tmp_path)[0].open("ab") as stream:
        stream.write(b'{"number":4,"kind":"le')
    again = AuditLog(tmp_path, SIGNER)
    assert again.head == log.head
    assert again.append("started").number == 4
    assert verify(tmp_path, SIGNER.public).number == 4


def test_a_crash_between_line_and_head_keeps_the_line(tmp_path):
    log = written(tmp_path, 3)
    before = (tmp_path / "head.json").read_bytes()
    head = log.append("left", bytes=5)
    (tmp_path / "head.json").write_bytes(before)
    assert AuditLog(tmp_path, SIGNER).head == head
    assert verify(tmp_path, SIGNER.public) == head


def test_two_processes_write_one_chain(tmp_path):
    written(tmp_path, 1)
    script = (
        "import sys; from pathlib import Path; from client.agent.audit_log import AuditLog;"
        "from privacy.secagg import Identity;"
        "log = AuditLog(Path(sys.argv[1]), Identity(1, bytes(range(32))));"
        "[log.append('approved', n=n) for n in range(20)]"
    )
    others = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    log = AuditLog(tmp_path, SIGNER)
    for number in range(20):
        log.append("asked", n=number)
    assert [other.wait(60) for other in others] == [0, 0]
    assert verify(tmp_path, SIGNER.public).number == 61


def test_a_line_cannot_take_the_place_of_the_chain_s_own_facts(tmp_path):
    log = written(tmp_path, 1)
    with pytest.raises(SiteError, match="previous"):
        log.append("asked", previous="x")
    with pytest.raises(SiteError, match="at most"):
        log.append("asked", text="x" * MAX_LINE)
    assert verify(tmp_path, SIGNER.public).number == 1


def test_a_disk_that_is_full_stops_the_work(tmp_path, monkeypatch):
    log = written(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SiteError, match="nothing is done: free space"):
        log.append("left")
