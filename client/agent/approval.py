"""Approvals: run definitions that a person at the site has looked at, signed with the site's key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.agent.audit_log import AuditLog
from client.agent.definition import RunDefinition
from privacy.secagg import Identity
from umbel.canonical import canonical_json
from umbel.errors import SiteError
from umbel.files import write_atomic

_PURPOSE = b"umbel site approval\n"


@dataclass(frozen=True, slots=True)
class Approval:
    """A signed approval.

    Attributes:
        definition: hash of the run definition.
        site: name of the site.
        person: who approved, as they said.
        since, until: UTC; runs may train in between.
        runs: how many run ids the definition may be trained under, those before this approval included.
    """

    definition: str
    site: str
    person: str
    since: datetime
    until: datetime
    runs: int = 1


class Approvals:
    """The approvals of a site: one file each, named by the hash that it approves.

    Args:
        folder: of the files.
        site: name of the site; an approval of another does not count.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder, self._site = folder, site

    def approve(
        self, definition: RunDefinition, identity: Identity, log: AuditLog, *, person: str, days: float, begun: int = 0
    ) -> Approval:
        """Signs an approval, notes it in the log, then stores it.

        Each approval allows one run id more than were begun or allowed before it.

        Args:
            definition: that is approved.
            identity: of the site.
            log: of the site.
            person: who approves.
            days: for how long.
            begun: under how many run ids the definition was trained already.

        Raises:
            SiteError: ``days`` is not above 0, or the log cannot be trusted or written.
        """
        if not 0 < days <= 3660:
            raise SiteError(f"An approval for {days:g} days cannot be given: choose between 0 and 3660.")
        since = datetime.now(UTC)
        until = since + timedelta(days=days)
        try:
            runs = max(begun, self.find(definition, identity.public).runs) + 1
        except SiteError:
            runs = begun + 1
        body = {
            "definition": definition.hash,
            "site": self._site,
            "person": person,
            "since": since.isoformat(),
            "until": until.isoformat(),
            "runs": runs,
            "body": definition.body(),
        }
        facts = {"person": person, "until": until.isoformat(), "runs": runs}
        log.append("approved", definition=definition.hash, **facts, of=definition.body())
        signed = {**body, "signature": identity.sign(_PURPOSE + canonical_json(body)).hex()}
        write_atomic(self._folder / f"{definition.hash}.json", json.dumps(signed, indent=1).encode(), mode=0o600)
        return Approval(definition.hash, self._site, person, since, until, runs)

    def withdraw(self, definition: str, log: AuditLog, *, person: str) -> None:
        """Takes an approval back: rounds that were not begun are refused from now on.

        Raises:
            SiteError: there is none for this hash.
        """
        path = self._folder / f"{definition}.json"
        if not _is_hash(definition) or not path.is_file():
            raise SiteError(f"There is no approval for {definition[:80]!r}: umbel site log lists those given.")
        log.append("withdrawn", definition=definition, person=person)
        path.unlink()

    def find(self, definition: RunDefinition, public: bytes, now: datetime | None = None) -> Approval:
        """The approval that holds for a definition.

        Raises:
            SiteError: there is none, it has run out, or it does not carry the site's signature.
        """
        path = self._folder / f"{definition.hash}.json"
        try:
            signed: dict[str, Any] = json.loads(path.read_bytes())
            signature = bytes.fromhex(signed.pop("signature"))
            Ed25519PublicKey.from_public_bytes(public).verify(signature, _PURPOSE + canonical_json(signed))
            approval = Approval(
                signed["definition"],
                signed["site"],
                signed["person"],
                datetime.fromisoformat(signed["since"]),
                datetime.fromisoformat(signed["until"]),
                int(signed.get("runs", 1)),
            )
        except FileNotFoundError:
            raise SiteError(
                f"Nobody at this site has approved the run definition {definition.hash[:16]}: show it to them with "
                "umbel site review RUN.toml."
            ) from None
        except (OSError, InvalidSignature, ValueError, KeyError, TypeError, AttributeError):
            raise SiteError(
                f"The approval {path} does not carry this site's signature: it was altered, approve the run again."
            ) from None
        if approval.definition != definition.hash or approval.site != self._site:
            raise SiteError(f"The approval {path} is for another run or site: approve this one.")
        if (now or datetime.now(UTC)) >= approval.until:
            raise SiteError(
                f"The approval of run definition {definition.hash[:16]} ended on {approval.until:%Y-%m-%d}: review it "
                "again."
            )
        return approval


def _is_hash(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
