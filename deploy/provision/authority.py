"""The authority of a federation: a folder with its keys, its index of members, and what it publishes.

::

    pki/                0700
    ├── ca.key          signs certificates and the revocation list (0600, encrypted where init got a passphrase)
    ├── authority.key   signs the roster and the list of release signers (0600, the same)
    ├── index.json      members, their public keys, every serial number
    ├── public/         ca.pem, crl.pem, authority.pub, roster.json, signers.json and their signatures
    ├── requests/       as they were signed
    ├── grants/         the current grant of every member
    ├── sites/NAME/     members whose keys were made here
    └── coordinators/NAME/
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from deploy.provision import certificates as build
from deploy.provision.grant import MAX_GRANT_BYTES, Grant, accept_grant, fingerprint, read_grant
from deploy.provision.keyring import AUTHORITY_KEY, CA_KEY, PUBLIC, Keyring, make_keys
from deploy.provision.keys import private_folder
from deploy.provision.member import USES, Index, Issued, Kind, Member
from deploy.provision.names import LOOPBACK, check_name
from deploy.provision.passphrase import Passphrase
from deploy.provision.request import SigningRequest, make_request, read_request
from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Roster
from privacy.secagg.pinned import PURPOSE, ROSTER, ROSTER_SIGNATURE
from umbel.errors import DeployError, UmbelError
from umbel.files import fsync_folder, write_atomic
from umbel.keyfile import read_bounded, read_public
from umbel.signed import sign
from umbel.signers import SIGNERS, SIGNERS_PURPOSE, SIGNERS_SIGNATURE, write_signers
from umbel.tls.identity import CA, REVOKED, parse_certificate

INDEX = "index.json"
DEFAULT_DAYS = 30
_MAX_INDEX = 64 << 20


class Authority:
    """An opened folder; make one with :meth:`init`, open it with the constructor.

    Args:
        folder: of the authority.
        passphrase: of its keys; asked for when a key is needed that is encrypted.

    Raises:
        DeployError: the folder holds no authority, or part of one.
    """

    def __init__(self, folder: Path, passphrase: Passphrase | None = None) -> None:
        self.folder = folder.expanduser().absolute()
        missing = [name for name in (CA_KEY, AUTHORITY_KEY, INDEX) if not (self.folder / name).is_file()]
        if missing:
            raise DeployError(
                f"{self.folder} holds no authority ({missing[0]} is missing): run 'umbel provision init', or restore "
                "the folder from its backup."
            )
        self.ca_pem = read_public(self.folder / PUBLIC / CA)
        self.ca = parse_certificate(self.ca_pem, self.folder / PUBLIC / CA)
        self._lock = FileLock(str(self.folder / ".lock"), timeout=30)
        self._keys = Keyring(self.folder, self.ca, passphrase or Passphrase())

    @classmethod
    def init(
        cls, folder: Path, federation: str, days: int = DEFAULT_DAYS, passphrase: Passphrase | None = None
    ) -> tuple[Authority, bool]:
        """The authority in ``folder``, and whether it was made now. One that is there is never replaced.

        Args:
            folder: absent, empty, or holding this federation's authority.
            federation: its name.
            days: for how long a certificate is valid, 1 to 825.
            passphrase: encrypts the authority's two keys; None leaves them to the mode of their files. The keys of an
                authority that is there already stay as they are: see :meth:`encrypt`.

        Raises:
            DeployError: the folder holds something else, or another federation's authority.
        """
        folder = folder.expanduser().absolute()
        check_name(federation)
        if not 1 <= days <= 825:
            raise DeployError(f"Certificates cannot be valid for {days} days: choose 1 to 825, better few.")
        if folder.is_dir() and any(folder.iterdir()):
            found = cls(folder, passphrase)
            known = found.index().federation
            if known != federation:
                raise DeployError(
                    f"{folder} holds the authority of {known!r} and it is never replaced: choose another folder for "
                    f"{federation!r}."
                )
            return found, False
        staging: Path | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            _make(staging, federation, days, passphrase or Passphrase())
            fresh = cls(staging, passphrase)
            fresh._publish(fresh.index())
            os.replace(staging, folder)  # an authority is there whole or not at all
            fsync_folder(folder.parent)
        except OSError as error:
            raise DeployError(
                f"{folder} cannot be made ({error.strerror}): choose a folder that you may write to."
            ) from None
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return cls(folder, passphrase), True

    @property
    def fingerprint(self) -> str:
        """What a site compares over another channel before its first grant."""
        return fingerprint(self.ca_pem, self._keys.public)

    def index(self) -> Index:
        """The members, as they stand in the file.

        Raises:
            DeployError: the file is damaged.
        """
        path = self.folder / INDEX
        try:
            return Index.model_validate_json(read_bounded(path, _MAX_INDEX))
        except ValidationError:
            raise DeployError(f"{path} is damaged: restore it from the backup.") from None

    def home(self, kind: Kind, name: str) -> Path:
        """Where the keys of a member are made by default, if they are made here."""
        return self.folder / f"{kind}s" / check_name(name)

    def enrol(self, kind: Kind, name: str, hosts: Sequence[str] = (), folder: Path | None = None) -> Path:
        """Makes a member's keys on this machine, signs for them, and returns its folder.

        Raises:
            DeployError: the name is taken, or a name or host is none.
        """
        self._require_free(self.index(), kind, name, ())
        self._keys.unlock()  # before the member gets keys
        place = (folder or self.home(kind, name)).expanduser().absolute()
        self.sign(read_request(make_request(place, kind, name, hosts)), folder=place)
        return place

    def sign(self, request: SigningRequest, *, folder: Path | None = None) -> Grant:
        """Takes a member in: certificates, a place in the roster or among the signers. Returns its grant.

        A name that was revoked may enrol again, with new keys.

        Raises:
            DeployError: the name, a host or a key is another member's, or was revoked.
        """
        with self._change() as index:
            self._require_free(index, request.kind, request.name, _foreign(request))
            keys = {use: build.public_pem(key).decode("ascii") for use, key in request.keys.items()}
            index.require_new_keys(request.name, {request.identity, request.supernode, *keys.values()} - {""})
            old = index.members.get(request.name)
            if old is not None:
                index.former.append(old)
            member = Member(
                kind=request.kind,
                name=request.name,
                folder=str(folder or ""),
                keys=keys,
                hosts=request.hosts,
                supernode=request.supernode,
                identity=request.identity,
            )
            index.members[request.name] = member
            index.version += 1
            issued = self._issue(index, member)
        return self._deliver(index, {member.name: issued})[member.name]

    def renew(self, names: Sequence[str] = (), *, within: timedelta | None = None) -> list[str]:
        """New certificates over the same keys, and a fresh revocation list.

        Args:
            names: members; none means all whose certificates end soon.
            within: how soon; default a third of their lifetime.

        Returns:
            The names whose certificates were renewed.

        Raises:
            DeployError: a name is not known or was revoked.
        """
        with self._change() as index:
            margin = within if within is not None else timedelta(days=index.days) / 3
            chosen = [self._active(index, name) for name in names] or [
                member for member in index.members.values() if member.revoked is None and _ends_within(member, margin)
            ]
            issued = {member.name: self._issue(index, member) for member in chosen}
        self._deliver(index, issued)
        return sorted(issued)

    def revoke(self, name: str) -> Member:
        """Revokes all certificates of a member and signs roster and signers without it.

        What is in ``public/`` and in the folders of members kept here has changed when this returns; servers that read
        these folders refuse the member from their next call on. Other machines need the new ``grants/``.

        Raises:
            DeployError: the name is not known or was revoked before.
        """
        with self._change() as index:
            member = self._active(index, name)
            member.revoked = build.now()
            for issued in member.certificates:
                issued.revoked = issued.revoked or member.revoked
            index.version += 1
        self._deliver(index, {})
        return member

    def encrypt(self, new: Passphrase) -> None:
        """Encrypts the authority's keys under another passphrase: see :meth:`Keyring.encrypt`."""
        with self._held():
            self._keys.encrypt(new)

    def note_node(self, name: str, node: str) -> None:
        """Remembers Flower's id of a member's SuperNode."""
        with self._change() as index:
            self._active(index, name).node = node

    def _issue(self, index: Index, member: Member) -> dict[str, str]:
        made: dict[str, str] = {}
        for use, server in USES[member.kind].items():
            try:
                public = member.key(use)
            except ValueError:
                raise DeployError(f"{self.folder / INDEX} is damaged: restore it from the backup.") from None
            certificate = build.issue(
                self.ca,
                self._keys.ca,
                public,
                name=member.name,
                use=use,
                federation=index.federation,
                server=server,
                hosts=member.hosts.get(use, []),
                lifetime=timedelta(days=index.days),
            )
            member.certificates.append(
                Issued(use=use, serial=certificate.serial_number, not_after=certificate.not_valid_after_utc)
            )
            made[use] = build.pem(certificate).decode("ascii")
        return made

    def _publish(self, index: Index) -> None:
        public = self.folder / PUBLIC
        revoked = [
            (issued.serial, issued.revoked)
            for member in (*index.former, *index.members.values())
            for issued in member.certificates
            if issued.revoked is not None
        ]
        crl = build.make_crl(
            self.ca,
            self._keys.ca,
            revoked,
            number=index.crl,
            lifetime=timedelta(days=2 * index.days),
        )
        key = self._keys.signing
        active = [member for member in index.members.values() if member.revoked is None]
        sites = {site_id(member.name): bytes.fromhex(member.identity) for member in active if member.kind == "site"}
        signers = {member.name: bytes.fromhex(member.identity) for member in active if member.kind == "coordinator"}
        roster, listed = Roster(sites).to_json().encode(), write_signers(signers)
        for name, data in (
            (REVOKED, build.pem(crl)),
            (ROSTER, roster),
            (ROSTER_SIGNATURE, sign(roster, key, PURPOSE, index.version)),
            (SIGNERS, listed),
            (SIGNERS_SIGNATURE, sign(listed, key, SIGNERS_PURPOSE, index.version)),
        ):
            write_atomic(public / name, data)

    def _deliver(self, index: Index, issued: dict[str, dict[str, str]]) -> dict[str, Grant]:
        """Writes the grant of every member, and puts it into the folders that are kept here.

        One folder that cannot take its grant keeps no other from getting a revocation.
        """
        grants: dict[str, Grant] = {}
        failed: list[str] = []
        for name, member in index.members.items():
            path = self.folder / "grants" / f"{name}.json"
            if member.revoked is not None:
                path.unlink(missing_ok=True)
                continue
            try:
                grant = grants[name] = self._grant(index, member, issued.get(name) or self._granted(path))
                write_atomic(path, grant.to_bytes())
                if member.folder and Path(member.folder).is_dir():
                    accept_grant(Path(member.folder), grant, trust=grant.fingerprint)
            except UmbelError as error:
                failed.append(f"{name}: {error}")
        if failed:
            raise DeployError(f"The change is published, but not delivered to every folder ({' '.join(failed)})")
        return grants

    def _granted(self, path: Path) -> dict[str, str]:
        try:
            return read_grant(read_bounded(path, MAX_GRANT_BYTES)).certificates
        except DeployError:
            raise DeployError(f"{path} is missing or damaged: run 'umbel provision renew {path.stem}'.") from None

    def _grant(self, index: Index, member: Member, made: dict[str, str]) -> Grant:
        crl, roster, roster_sig, signers, signers_sig = (
            read_bounded(self.folder / PUBLIC / name, 4 << 20).decode("ascii")
            for name in (REVOKED, ROSTER, ROSTER_SIGNATURE, SIGNERS, SIGNERS_SIGNATURE)
        )
        return Grant(
            federation=index.federation,
            kind=member.kind,
            name=member.name,
            ca=self.ca_pem.decode("ascii"),
            authority=self._keys.public.hex(),
            certificates=made,
            crl=crl,
            roster=roster,
            roster_sig=roster_sig,
            signers=signers,
            signers_sig=signers_sig,
        )

    def _require_free(self, index: Index, kind: Kind, name: str, hosts: Sequence[str]) -> None:
        member = index.members.get(check_name(name))
        if member is not None and member.revoked is None:
            raise DeployError(
                f"{name!r} is enrolled already as a {member.kind}: renew it with 'umbel provision renew {name}', or "
                "revoke it first if it needs new keys."
            )
        for other in index.members.values():
            taken = {host for listed in other.hosts.values() for host in listed} - set(LOOPBACK)
            for host in hosts:
                if other.name != name and other.revoked is None and host in taken:
                    raise DeployError(
                        f"{name!r} asks for the host {host!r}, which belongs to {other.name!r}: no member may "
                        "answer in another's name."
                    )

    def _active(self, index: Index, name: str) -> Member:
        member = index.members.get(name)
        if member is None:
            raise DeployError(f"{name[:80]!r} is not enrolled: 'umbel provision list' shows who is.")
        if member.revoked is not None:
            raise DeployError(f"{name!r} was revoked on {member.revoked:%Y-%m-%d}: enrol it again with new keys.")
        return member

    @contextmanager
    def _change(self) -> Iterator[Index]:
        """Reads, changes and publishes under a lock; the index is durable before anything it describes is."""
        with self._held():
            self._keys.unlock()
            index = self.index()
            yield index
            index.crl += 1
            write_atomic(self.folder / INDEX, index.model_dump_json(indent=1).encode(), mode=0o600)
            self._publish(index)

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout:
            raise DeployError(f"{self.folder} is in use by another process: try again when it has ended.") from None
        try:
            yield
        finally:
            self._lock.release()


def _make(folder: Path, federation: str, days: int, passphrase: Passphrase) -> None:
    make_keys(folder, federation, passphrase)
    for name in ("requests", "grants"):
        private_folder(folder / name)
    index = Index(federation=federation, days=days, crl=1, version=1)
    write_atomic(folder / INDEX, index.model_dump_json(indent=1).encode(), mode=0o600)


def _foreign(request: SigningRequest) -> list[str]:
    return sorted({host for listed in request.hosts.values() for host in listed} - set(LOOPBACK))


def _ends_within(member: Member, margin: timedelta) -> bool:
    currents = [member.current(use) for use in USES[member.kind]]
    return any(issued is None or issued.not_after - build.now() < margin for issued in currents)
