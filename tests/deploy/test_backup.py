"""Backup and restore: nothing that was spent is forgotten, nothing that was logged is rewritten."""

import contextlib
import os
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

import pytest

from deploy.archive import read_archive, write_archive
from deploy.backup import back_up, restore
from privacy.accounting import Event
from privacy.ledger import Budget, Ledger
from privacy.terms import Mechanism, Relation, Sampler, Unit
from umbel.cli.main import main
from umbel.errors import DeployError, LedgerError

EVENT = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 8.0)


def spend(root, times=1):
    with Ledger.open(root / "state" / "ledger.sqlite") as ledger:
        for _ in range(times):
            ledger.reserve(EVENT, dataset="chest", unit=Unit.EXAMPLE)


def booked(root):
    with Ledger.open(root / "state" / "ledger.sqlite", create=False) as ledger:
        ledger.verify()
        return len(ledger.events(dataset="chest", unit=Unit.EXAMPLE))


def log(root, lines, files=1):
    """A log as the site writes it, as far as a backup looks into it."""
    folder = root / "state" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(lines) // files)
    for number in range(files):
        part = lines[number * share : (number + 1) * share]
        (folder / f"audit-{number + 1:06d}.jsonl").write_text("".join(f"{line}\n" for line in part))
    (folder / "head.json").write_text(str(len(lines)))


def logged(root):
    folder = root / "state" / "log"
    lines = [line for path in sorted(folder.glob("audit-*.jsonl")) for line in path.read_text().splitlines()]
    return lines, (folder / "head.json").read_text()


def registry(root, values):
    path = root / "registry.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS release (name TEXT)")
        connection.executemany("INSERT INTO release VALUES (?)", [(value,) for value in values])
    connection.close()


def released(root):
    with sqlite3.connect(root / "registry.sqlite") as connection:
        return [name for (name,) in connection.execute("SELECT name FROM release ORDER BY rowid")]


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    spend(root, 2)
    log(root, ["one", "two"])
    registry(root, ["first"])
    (root / "identity.pem").write_text("PRIVATE")
    return root


def test_all_of_it_comes_back_on_an_empty_machine_when_the_loss_is_accepted(site, tmp_path):
    found = back_up(site, tmp_path / "b.tar")
    assert set(found.values()) == {"ledger", "log", "database"}
    shutil.rmtree(site)
    with pytest.raises(DeployError, match=r"is gone.*--accept-loss"):
        restore(site, tmp_path / "b.tar")
    assert not site.exists()
    restore(site, tmp_path / "b.tar", accept_loss=True)
    assert booked(site) == 2
    assert logged(site) == (["one", "two"], "2")
    assert released(site) == ["first"]


def test_no_key_is_in_it_and_nobody_else_may_read_it(site, tmp_path):
    back_up(site, tmp_path / "b.tar")
    assert b"PRIVATE" not in (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600


def test_what_was_spent_since_the_backup_stays_spent(site, tmp_path):
    back_up(site, tmp_path / "b.tar")
    spend(site, 3)
    log(site, ["one", "two", "three"], files=2)
    done = {item.kind: item.action for item in restore(site, tmp_path / "b.tar")}
    assert done == {"ledger": "kept", "log": "kept", "database": "replaced"}
    assert booked(site) == 5
    assert logged(site) == (["one", "two", "three"], "3")


def test_a_ledger_that_was_put_back_by_hand_takes_in_the_later_backup(site, tmp_path):
    old = back_up(site, tmp_path / "old.tar")
    assert old
    spend(site, 2)
    back_up(site, tmp_path / "new.tar")
    shutil.rmtree(site / "state")
    restore(site, tmp_path / "old.tar", accept_loss=True)
    spend(site, 1)  # somebody went on from the old one
    restore(site, tmp_path / "new.tar")
    assert booked(site) == 5
    restore(site, tmp_path / "new.tar")
    assert booked(site) == 5


def test_a_damaged_ledger_is_set_aside_and_what_reads_of_it_counts(site, tmp_path):
    back_up(site, tmp_path / "b.tar")
    spend(site, 2)
    path = site / "state" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER line_fixed")
        connection.execute("UPDATE line SET hash = 'x' WHERE number = 3")
    connection.close()
    with pytest.raises(LedgerError):
        Ledger.open(path)
    with pytest.raises(DeployError, match="is damaged"):
        restore(site, tmp_path / "b.tar")
    restore(site, tmp_path / "b.tar", accept_loss=True)
    assert booked(site) == 4
    (aside,) = (site / "state").glob("ledger.sqlite.before-*[0-9]")
    assert aside.stat().st_size > 0


def test_a_raised_budget_in_an_old_backup_does_not_come_back(site, tmp_path):
    path = site / "state" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.set_budget(Budget(8.0, 1e-5), dataset="chest", unit=Unit.EXAMPLE)
    back_up(site, tmp_path / "b.tar")
    with Ledger.open(path) as ledger:
        ledger.set_budget(Budget(2.0, 1e-5), dataset="chest", unit=Unit.EXAMPLE)
    restore(site, tmp_path / "b.tar")
    with Ledger.open(path) as ledger:
        assert ledger.budget(dataset="chest", unit=Unit.EXAMPLE) == Budget(2.0, 1e-5)


def test_a_shorter_log_is_continued_and_another_one_is_refused(site, tmp_path):
    log(site, ["one", "two", "three"], files=2)
    back_up(site, tmp_path / "b.tar")
    log(site, ["one"])
    (site / "state" / "log" / "audit-000002.jsonl").unlink()
    restore(site, tmp_path / "b.tar")
    assert logged(site) == (["one", "two", "three"], "3")
    log(site, ["one", "TWO", "three"])
    (site / "state" / "log" / "audit-000002.jsonl").unlink()
    spend(site)
    with pytest.raises(DeployError, match="keep both as evidence"):
        restore(site, tmp_path / "b.tar")
    assert logged(site)[0] == ["one", "TWO", "three"]
    assert booked(site) == 3


def test_a_backup_of_a_database_in_use_is_one_moment_of_it(site, tmp_path):
    writer = sqlite3.connect(site / "registry.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO release VALUES ('half')")
    back_up(site, tmp_path / "b.tar")
    writer.execute("COMMIT")
    writer.close()
    restore(site, tmp_path / "b.tar")
    assert released(site) == ["first"]


def test_one_changed_byte_is_noticed_before_anything_is_touched(site, tmp_path):
    archive = tmp_path / "b.tar"
    back_up(site, archive)
    data = bytearray(archive.read_bytes())
    data[data.index(b"one\ntwo\n")] ^= 1
    archive.write_bytes(data)
    spend(site)
    with pytest.raises(DeployError, match="not what was backed up"):
        restore(site, archive)
    assert booked(site) == 3
    archive.write_bytes(bytes(data[:2048]))
    with pytest.raises(DeployError, match="no whole backup"):
        restore(site, archive)
    with pytest.raises(DeployError, match="There is no backup"):
        restore(site, tmp_path / "none.tar")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_names_that_lead_elsewhere(tmp_path, name):
    write_archive(tmp_path / "b.tar", {name: ("log", b"x")})
    with pytest.raises(DeployError, match="leads elsewhere"):
        restore(tmp_path / "site", tmp_path / "b.tar")
    assert not (tmp_path / "site").exists()


def test_a_link_in_an_archive_is_no_file(tmp_path):
    write_archive(tmp_path / "b.tar", {"a": ("log", b"")})
    with tarfile.open(tmp_path / "b.tar") as archive:
        manifest = archive.extractfile("manifest.json").read()
    import io

    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        head = tarfile.TarInfo("manifest.json")
        head.size = len(manifest)
        archive.addfile(head, io.BytesIO(manifest))
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DeployError, match="no whole backup"):
        read_archive(tmp_path / "c.tar")


def test_a_backup_is_never_overwritten_nor_written_into_itself(site, tmp_path):
    back_up(site, tmp_path / "b.tar")
    with pytest.raises(DeployError, match="never overwritten"):
        back_up(site, tmp_path / "b.tar")
    with pytest.raises(DeployError, match="another disk"):
        back_up(site, site / "b.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeployError, match="holds no ledger"):
        back_up(tmp_path / "empty", tmp_path / "c.tar")
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["b.tar"]


@pytest.mark.parametrize("change", ["UPDATE head SET number = 9", "PRAGMA application_id = 0"])
def test_a_damaged_ledger_is_not_backed_up(site, tmp_path, change):
    """One that lost its mark is still read as a ledger."""
    with sqlite3.connect(site / "state" / "ledger.sqlite") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(LedgerError):
        back_up(site, tmp_path / "b.tar")


@pytest.fixture
def open_site():
    """A site's folder that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        Path(folder).chmod(0o777)
        root = Path(folder) / "site"
        spend(root, 2)
        log(root, ["one", "two"])
        yield root


@contextlib.contextmanager
def as_nobody():
    """Without the rights of root, if these tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 16, b"SQLite format 3\0" + b"\7" * 4080])
@pytest.mark.parametrize("name", ["state/ledger.sqlite", "registry.sqlite"])
def test_a_database_that_is_none_any_more_is_an_error_and_nothing_is_written(site, tmp_path, name, content):
    (site / name).write_bytes(content)
    assert main(["backup", str(site), str(tmp_path / "b.tar")]) in {54, 85}
    with pytest.raises((DeployError, LedgerError)) as caught:
        back_up(site, tmp_path / "b.tar")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.tar").exists()


def test_somebody_s_file_that_ends_like_a_database_is_left_alone(site, tmp_path):
    (site / "Thumbs.db").write_bytes(b"pictures")
    assert "Thumbs.db" not in back_up(site, tmp_path / "b.tar")
    (site / "superlink.db").write_bytes(b"pictures")
    with pytest.raises(DeployError, match=r"superlink.db is damaged"):
        back_up(site, tmp_path / "c.tar")


def test_a_log_without_head_or_without_lines_is_an_error(site, tmp_path):
    folder = site / "state" / "log"
    (folder / "head.json").rename(folder / "aside")
    with pytest.raises(DeployError, match=r"lacks its head\.json"):
        back_up(site, tmp_path / "b.tar")
    (folder / "aside").rename(folder / "head.json")
    (folder / "audit-000001.jsonl").unlink()
    with pytest.raises(DeployError, match="lacks its lines"):
        back_up(site, tmp_path / "b.tar")
    (site / "adapter").mkdir()
    (site / "adapter" / "head.json").write_text("of a release")
    log(site, ["one"])
    assert "adapter/head.json" not in back_up(site, tmp_path / "b.tar")


@pytest.mark.parametrize("name", ["state", "state/log", "state/ledger.sqlite"])
def test_a_link_is_not_passed_over(site, tmp_path, name):
    (site / name).rename(tmp_path / "elsewhere")
    (site / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeployError, match="is a link, which a backup does not follow"):
        back_up(site, tmp_path / "b.tar")


@pytest.mark.parametrize("name", ["state", "state/log", "state/log/head.json", "state/ledger.sqlite"])
def test_what_may_not_be_read_is_an_error_and_nothing_is_written(open_site, name, capsys):
    archive = open_site.parent / "b.tar"
    for path in (open_site / "state").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (open_site / "state").chmod(0o755)
    (open_site / name).chmod(0)
    with as_nobody():
        assert main(["backup", str(open_site), str(archive)]) in {54, 85}
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not archive.exists()
    (open_site / name).chmod(0o755)


def test_a_restore_by_somebody_else_is_one_sentence_and_changes_nothing(open_site, capsys):
    archive = open_site.parent / "b.tar"
    back_up(open_site, archive)
    before = {path: path.read_bytes() for path in open_site.rglob("*") if path.is_file()}
    with as_nobody():
        assert main(["restore", str(archive), str(open_site)]) == 85
        assert "cannot be read (Permission denied)" in capsys.readouterr().err
    archive.chmod(0o644)
    with as_nobody():
        assert main(["restore", str(archive), str(open_site)]) == 85
        assert "cannot be read or written (Permission denied): run this as the user" in capsys.readouterr().err
        assert main(["restore", str(archive), "/proc/nowhere", "--accept-loss"]) == 85
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in open_site.rglob("*") if path.is_file()} == before


def test_restored_folders_are_private(site, tmp_path):
    back_up(site, tmp_path / "b.tar")
    restore(tmp_path / "fresh" / "site", tmp_path / "b.tar", accept_loss=True)
    for folder in (tmp_path / "fresh" / "site" / "state", tmp_path / "fresh" / "site" / "state" / "log"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_commands(site, tmp_path, capsys):
    assert main(["backup", str(site), str(tmp_path / "b.tar")]) == 0
    assert "ledger    state/ledger.sqlite" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "b.tar"), str(site)]) == 0
    assert "kept" in capsys.readouterr().out
    (site / "state" / "ledger.sqlite").unlink()
    assert main(["restore", str(tmp_path / "b.tar"), str(site)]) == 85
    assert "--accept-loss" in capsys.readouterr().err
