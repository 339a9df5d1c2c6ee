"""The SuperNode's place in Flower: its key is registered at the SuperLink, and taken out again on revocation.

Flower's Control API has no login of its own; ``connection`` is the operator's, from ``$FLWR_HOME/config.toml``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.provision.authority import Authority
from deploy.provision.member import Member
from umbel.errors import DeployError
from umbel.files import write_atomic

_SECONDS = 120


def register_command(public: Path, connection: str, name: str) -> list[str]:
    """The command line that registers a SuperNode's public key."""
    return ["flwr", "supernode", "register", str(public), connection, "--name", name, "--format", "json"]


def unregister_command(node: str, connection: str) -> list[str]:
    """The command line that takes it out again."""
    return ["flwr", "supernode", "unregister", node, connection, "--format", "json"]


def register(authority: Authority, member: Member, connection: str) -> str:
    """Registers a site's SuperNode key at the SuperLink; returns Flower's node id, which the index keeps.

    Raises:
        DeployError: the member is no site, or Flower refuses.
    """
    if not member.supernode:
        raise DeployError(f"{member.name!r} is a {member.kind} and runs no SuperNode: name a site.")
    public = authority.folder / "requests" / f"{member.name}.supernode.pub"
    write_atomic(public, member.supernode.encode() + b"\n")
    body = _run(register_command(public, connection, member.name))
    node = str(body.get("node-id", ""))
    if not node.isdigit():
        raise DeployError("Flower did not say which id the SuperNode has: look with 'flwr supernode list'.")
    authority.note_node(member.name, node)
    return node


def unregister(member: Member, connection: str) -> str:
    """Takes a SuperNode out, at once and for good; returns its id.

    Raises:
        DeployError: it was never registered from here, or Flower refuses.
    """
    if not member.node:
        raise DeployError(
            f"The SuperNode of {member.name!r} was not registered from here: find its id with 'flwr supernode list "
            f"{connection}' and run 'flwr supernode unregister ID {connection}'."
        )
    _run(unregister_command(member.node, connection))
    return member.node


def _run(command: list[str]) -> dict[str, object]:
    """Runs Flower's command line from this environment and reads the JSON object that it prints."""
    program = Path(sys.executable).with_name(command[0])
    line = [str(program) if program.exists() else command[0], *command[1:]]
    said = " ".join(command[:3])
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeployError(f"'{said}' could not run ({error}): install Flower and check the SuperLink.") from None
    text = done.stdout[done.stdout.find("{") :] if "{" in done.stdout else ""
    try:
        body = json.JSONDecoder().raw_decode(text)[0] if text else {}
    except ValueError:
        body = {}
    if done.returncode != 0 or not isinstance(body, dict) or body.get("success") is False:
        why = " ".join((str(body.get("error-message", "")) or done.stderr or done.stdout).split())[:300]
        raise DeployError(f"'{said}' failed ({why}): check the connection in Flower's config.toml and the SuperLink.")
    return body
