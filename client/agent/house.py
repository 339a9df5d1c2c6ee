"""House: the folder of a site: its policy, its keys, and what it must never lose.

::

    site.toml         policy
    seal.key          0600
    identity/
      identity.key    Ed25519 key, 0600: signs approvals, the log and secure aggregation
      identity.pub    its public half, for enrolment
      authority.pub, roster.json, roster.sig    from the federation: the sites that this one aggregates with
    state/            0700
      ledger.sqlite   what was spent
      log/            what was asked and what left
      approvals/      signed
      runs/           what the site keeps of each run, sealed
      desk.sock       for umbel site status
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.agent.policy import SitePolicy, read_policy
from client.agent.starter import STARTER
from privacy.secagg import Identity, Roster
from privacy.secagg.pinned import IDENTITY, pinned_identity, pinned_roster
from umbel.errors import SiteError
from umbel.files import write_atomic
from umbel.keyfile import read_private
from umbel.signed import signing_pem, verifying_pem

POLICY = "site.toml"
_SEAL_BYTES = 32
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class House:
    """An opened folder. Make one with :meth:`open`."""

    folder: Path
    policy: SitePolicy
    policy_hash: str

    @classmethod
    def open(cls, folder: Path) -> House:
        """Reads the policy; keys are read when they are needed.

        Raises:
            SiteError: the policy cannot be read or is not accepted, or this user may not look into ``state``.
        """
        folder = folder.expanduser().absolute()
        policy = read_policy(folder / POLICY)
        house = cls(folder, policy, hashlib.sha256((folder / POLICY).read_bytes()).hexdigest())
        house.require_access(os.R_OK | os.X_OK)
        return house

    def require_access(self, wanted: int = os.R_OK | os.W_OK | os.X_OK) -> None:
        """Raises SiteError where ``state`` is there and this user may not use it so (``os.access``).

        What stands in a folder that cannot be read would otherwise pass for missing, or for altered.
        """
        if os.path.lexists(self.state) and not os.access(self.state, wanted, effective_ids=True):
            raise SiteError(
                f"{self.state} is not open to this user: run this as the site's own user, or give the folder back to "
                "that user."
            )

    @property
    def keys(self) -> Path:
        """Folder of the identity and the roster."""
        return self.place(self.policy.keys.identity)

    @property
    def state(self) -> Path:
        """Folder of everything that must survive."""
        return self.folder / "state"

    @property
    def ledger(self) -> Path:
        """File of the ledger."""
        return self.state / "ledger.sqlite"

    @property
    def log(self) -> Path:
        """Folder of the log."""
        return self.state / "log"

    @property
    def approvals(self) -> Path:
        """Folder of signed approvals."""
        return self.state / "approvals"

    @property
    def desk(self) -> Path:
        """The site's own socket."""
        return self.state / "desk.sock"

    def place(self, written: str) -> Path:
        """A path of the policy: relative ones count from the folder."""
        return self.folder / Path(written).expanduser()

    def run(self, coordinator: str, run: str) -> Path:
        """Folder of what is kept of one run.

        Raises:
            SiteError: the name could lead elsewhere.
        """
        for name in (coordinator, run):
            if not _SAFE.fullmatch(name):
                raise SiteError(
                    f"{name[:80]!r} cannot name a run: expected at most 64 letters, digits, dots, dashes and "
                    "underscores, beginning with a letter or digit."
                )
        return self.state / "runs" / coordinator / run

    def identity(self) -> Identity:
        """The site's identity.

        Raises:
            DeployError: the key is missing, none, or others may read it.
        """
        return pinned_identity(self.keys, self.policy.name)

    def secret(self, purpose: str) -> bytes:
        """32 bytes for one purpose, always the same (HKDF-SHA256).

        Raises:
            SiteError: the file does not hold 32 bytes in hexadecimal.
            DeployError: it is missing, or others may read it.
        """
        path = self.place(self.policy.keys.seal)
        try:
            key = bytes.fromhex(read_private(path).decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) != _SEAL_BYTES:
            raise SiteError(f"{path} does not hold {_SEAL_BYTES} bytes in hexadecimal: restore it from the backup.")
        return HKDF(SHA256(), _SEAL_BYTES, None, b"umbel site " + purpose.encode()).derive(key)

    def roster(self) -> Roster:
        """The identities that this site aggregates with; an older roster than the newest one seen is not taken back.

        Raises:
            SiteError: the roster does not hold this site under its own key.
            DeployError: a file is missing, or the roster is not signed by the pinned authority, or too old.
            SecAggError: what is signed is no roster.
        """
        seen = self.state / "roster-version"
        newest = _newest(seen)
        roster, version = pinned_roster(self.keys, minimum=newest)
        if version > newest:
            write_atomic(seen, str(version).encode(), mode=0o600)
        own = self.identity()
        if roster.members.get(own.id) != own.public:
            raise SiteError(
                f"The roster in {self.keys} does not hold {self.policy.name!r} with this site's key: enrol "
                "identity.pub and put the new roster there."
            )
        return roster


def _newest(seen: Path) -> int:
    """The newest roster's version; 0 before the first. Raises SiteError: counting anew would take an old roster."""
    try:
        text = seen.read_text("ascii").strip()
    except FileNotFoundError:
        return 0
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise SiteError(f"{seen} cannot be read ({error.strerror}): run this as the site's own user.") from None
    if not text.isdigit():
        raise SiteError(
            f"{seen} does not hold the version of the newest roster: restore it from the backup, or write there the "
            "version that the federation names."
        )
    return int(text)


def init(folder: Path, name: str) -> House:
    """Makes a site's folder: starter policy and fresh keys. What is there already stays as it is.

    Raises:
        SiteError: the name cannot be a site's, or the policy that is there is not accepted.
        RunError: the folder cannot be written.
    """
    folder = folder.expanduser().absolute()
    if not _SAFE.fullmatch(name):
        raise SiteError(f"{name!r} cannot name a site: use letters, digits, dots and dashes, at most 64.")
    if not (folder / POLICY).exists():
        write_atomic(folder / POLICY, STARTER.format(name=name).encode())
    house = House.open(folder)
    house.state.mkdir(mode=0o700, exist_ok=True)
    if not (house.keys / IDENTITY).exists():
        key = Ed25519PrivateKey.generate()
        write_atomic(house.keys / IDENTITY, signing_pem(key), mode=0o600)
        write_atomic(house.keys / "identity.pub", verifying_pem(key.public_key().public_bytes_raw()))
    seal = house.place(house.policy.keys.seal)
    if not seal.exists():
        write_atomic(seal, secrets.token_hex(_SEAL_BYTES).encode() + b"\n", mode=0o600)
    return house


def clear_socket(path: Path) -> None:
    """Makes room for a Unix socket: its folder, private unless it is there, and no stale socket of an earlier process.

    Raises:
        SiteError: something else stands there, or the folder cannot be made.
    """
    if len(os.fsencode(path)) > 100:
        raise SiteError(f"The socket {path} has too long a path (100 bytes at most): choose a shorter one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_socket():
            path.unlink()
    except OSError as error:
        raise SiteError(f"The socket {path} cannot be made ({error.strerror}): choose another folder.") from None
    if path.exists():
        raise SiteError(f"{path} is there already and is no socket: choose another path.")
