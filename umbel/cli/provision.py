"""``umbel provision``: who belongs to a federation, and with which certificates and keys."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from umbel.cli.console import out
from umbel.errors import ConfigError, DeployError

if TYPE_CHECKING:
    from deploy.provision import Authority, Member
    from deploy.provision.passphrase import Passphrase

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Certificates, node keys, identities and the roster."
)

Pki = Annotated[Path, typer.Option("--pki", help="Folder of the authority.")]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="DNS name or address that its servers answer to; repeat for several.")
]
Connection = Annotated[
    str | None, typer.Option("--superlink", help="Flower connection (in Flower's config.toml) of the SuperLink.")
]
Secret = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="UMBEL_PKI_PASSPHRASE_FILE",
        help="File (0600) whose first line opens the authority's keys; asked for in a terminal if not given.",
    ),
]
_PKI = Path("pki")


@app.command()
def init(
    federation: Annotated[str, typer.Argument(help="Name of the federation.")],
    pki: Pki = _PKI,
    days: Annotated[int, typer.Option(help="Days for which a certificate is valid.")] = 30,
    passphrase_file: Secret = None,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Ask for a passphrase for the authority's keys.")] = False,
) -> None:
    """Make the authority of a federation. One that is there already is kept, never replaced."""
    from deploy.provision import Authority

    authority, made = Authority.init(pki, federation, days, _new_secret(passphrase_file, encrypt))
    _line(f"{'Made' if made else 'Kept'} the authority of {federation} in {authority.folder}.")
    _line(f"fingerprint {authority.fingerprint}")


@app.command()
def coordinator(
    name: Annotated[str, typer.Argument(help="Name of the coordinator.")],
    host: Hosts = None,
    pki: Pki = _PKI,
    folder: Annotated[Path | None, typer.Option(help="Where its keys are made.")] = None,
    passphrase_file: Secret = None,
) -> None:
    """Enrol a coordinator: SuperLink, reverse proxy, release server, operator, and its key for signing releases."""

    _line(f"Enrolled {name}: {_authority(pki, passphrase_file).enrol('coordinator', name, host or [], folder)}")


@app.command()
def site(
    name: Annotated[str, typer.Argument(help="Name of the site, as in its policy.")],
    host: Hosts = None,
    pki: Pki = _PKI,
    folder: Annotated[Path | None, typer.Option(help="Where its keys are made.")] = None,
    superlink: Connection = None,
    passphrase_file: Secret = None,
) -> None:
    """Enrol a site whose keys are made on this machine. Where keys must not travel use request, sign and accept."""

    authority = _authority(pki, passphrase_file)
    place = authority.enrol("site", name, host or [], folder)
    _line(f"Enrolled {name}: {place}")
    _register(authority, name, superlink)


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="Name of the site or coordinator.")],
    folder: Annotated[Path, typer.Option(help="Folder of the member: keys are made there and stay there.")],
    to: Annotated[Path, typer.Option(help="File to write the request to.")] = Path("request.json"),
    host: Hosts = None,
    kind: Annotated[str, typer.Option(help="site or coordinator.")] = "site",
) -> None:
    """At a site: make its keys and a signing request. The request holds nothing secret."""
    from deploy.provision import make_request, read_request
    from umbel.files import write_atomic

    if kind not in ("site", "coordinator"):
        raise ConfigError(f"--kind {kind!r} is none: write site or coordinator.")
    data = make_request(folder.expanduser(), "site" if kind == "site" else "coordinator", name, host or [])
    write_atomic(to.expanduser().absolute(), data)
    _line(f"Wrote {to}: send it to the federation's authority, and tell it this fingerprint over another channel.")
    _line(f"fingerprint {read_request(data).fingerprint}")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="The request.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The request's fingerprint, as its sender told it; asked for if not given.")
    ] = None,
    pki: Pki = _PKI,
    superlink: Connection = None,
    passphrase_file: Secret = None,
) -> None:
    """At the authority: take a member in that keeps its own keys. Writes its grant."""
    from deploy.provision import read_request
    from deploy.provision.request import MAX_REQUEST_BYTES
    from umbel.files import write_atomic
    from umbel.keyfile import read_bounded

    authority = _authority(pki, passphrase_file)
    data = read_bounded(file, MAX_REQUEST_BYTES)
    asked = read_request(data)
    hosts = sorted({host for listed in asked.hosts.values() for host in listed})
    _line(f"{asked.kind} {asked.name}, hosts {', '.join(hosts)}")
    _line(f"fingerprint {asked.fingerprint}")
    if fingerprint is None:
        typer.confirm("Did its sender tell you this fingerprint, over another channel?", abort=True)
    elif fingerprint.lower().replace(":", "") != asked.fingerprint:
        raise DeployError("The request has another fingerprint than the one given: do not sign it, ask its sender.")
    authority.sign(asked)
    write_atomic(authority.folder / "requests" / f"{asked.name}.json", data)
    _line(f"Enrolled {asked.name}: send it {authority.folder / 'grants' / f'{asked.name}.json'}")
    _line(f"and tell it the authority's fingerprint {authority.fingerprint}")
    _register(authority, asked.name, superlink)


@app.command()
def accept(
    file: Annotated[Path, typer.Argument(help="The grant.")],
    folder: Annotated[Path, typer.Option(help="Folder of the member, as in the request.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The authority's fingerprint; needed the first time, pinned from then on.")
    ] = None,
) -> None:
    """At a site: check what the authority signed and put it into the site's folder. Also for renewed grants."""
    from deploy.provision import accept_grant, read_grant
    from deploy.provision.grant import MAX_GRANT_BYTES
    from umbel.keyfile import read_bounded

    grant = read_grant(read_bounded(file, MAX_GRANT_BYTES))
    accept_grant(folder.expanduser().absolute(), grant, trust=fingerprint)
    _line(f"{grant.name} belongs to {grant.federation}: certificates, roster and signers are in {folder}.")


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    superlink: Annotated[str, typer.Option(help="Flower connection of the SuperLink.")],
    pki: Pki = _PKI,
    passphrase_file: Secret = None,
) -> None:
    """Register a site's SuperNode key at the SuperLink, before its SuperNode starts."""
    _register(_authority(pki, passphrase_file), name, superlink)


@app.command()
def renew(
    names: Annotated[list[str] | None, typer.Argument(help="Members; none means all that are due.")] = None,
    pki: Pki = _PKI,
    within: Annotated[int | None, typer.Option(help="Days; default a third of a certificate's lifetime.")] = None,
    passphrase_file: Secret = None,
) -> None:
    """Issue new certificates over the same keys, and a fresh revocation list. Run it daily."""

    authority = _authority(pki, passphrase_file)
    done = authority.renew(names or [], within=None if within is None else timedelta(days=within))
    _line(f"Renewed {', '.join(done)}." if done else "No certificate is due.")
    remote = [name for name in done if not authority.index().members[name].folder]
    for name in remote:
        _line(f"Send {name} its new grant: {authority.folder / 'grants' / f'{name}.json'}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the member.")],
    pki: Pki = _PKI,
    superlink: Connection = None,
    passphrase_file: Secret = None,
) -> None:
    """Revoke a member at once: its certificates, its SuperNode and its place in the roster. No server restarts.

    Where the SuperLink could not be reached, the same command again takes the SuperNode out.
    """
    from deploy.provision.supernode import unregister, unregister_command

    authority = _authority(pki, passphrase_file)
    member = authority.index().members.get(name)
    if superlink is not None and member is not None and member.kind == "site" and member.revoked is not None:
        _line(f"{name} was revoked on {member.revoked:%Y-%m-%d} already.")  # the SuperLink could not be reached then
    else:
        member = authority.revoke(name)
        serials = [f"{issued.serial:x}" for issued in member.certificates if issued.revoked == member.revoked]
        _line(f"Revoked {name}: {len(serials)} certificates, and signed the roster without it.")
    remote = [m.name for m in authority.index().members.values() if m.revoked is None and not m.folder]
    if remote:
        _line(f"Send the new grants to {', '.join(sorted(remote))}: they are in {authority.folder / 'grants'}.")
    if member.kind == "site":
        if superlink is not None:
            _line(f"Unregistered its SuperNode {unregister(member, superlink)}.")
        else:
            _line(f"Take its SuperNode out too: {' '.join(unregister_command(member.node or 'ID', 'CONNECTION'))}")


@app.command()
def passphrase(
    pki: Pki = _PKI,
    passphrase_file: Secret = None,
    new: Annotated[
        Path | None, typer.Option("--new-passphrase-file", help="File (0600) with the new one; asked for if not given.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Decrypt the keys.")] = False,
) -> None:
    """Give the authority's keys a passphrase, another one, or none. No key and no certificate changes."""
    from deploy.provision.passphrase import Passphrase

    authority = _authority(pki, passphrase_file)
    authority.encrypt(Passphrase() if none else _new_secret(new, new is None))
    _line(f"The keys of {authority.folder} are {'not encrypted any more' if none else 'encrypted'}.")


@app.command("list")
def show(pki: Pki = _PKI) -> None:
    """List the members with the end of their certificates."""
    from deploy.provision import Authority

    authority = Authority(pki)
    index = authority.index()
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "keys", "state", "valid until"):
        table.add_column(column, no_wrap=True)
    for member in sorted(index.members.values(), key=lambda member: (member.kind, member.name)):
        table.add_row(*_row(member))
    _line(f"{index.federation}, roster version {index.version}, fingerprint {authority.fingerprint}")
    out.print(table)


def _row(member: Member) -> list[str]:
    from deploy.provision.member import USES

    where = "here" if member.folder else "its own"
    if member.revoked is not None:
        return [member.name, member.kind, where, f"revoked {member.revoked:%Y-%m-%d}", ""]
    currents = [issued for use in USES[member.kind] if (issued := member.current(use)) is not None]
    first = min(currents, key=lambda issued: issued.not_after, default=None)
    return [
        member.name,
        member.kind,
        where,
        "enrolled",
        f"{first.not_after:%Y-%m-%d}" if first else "",
    ]


def _authority(pki: Path, secret: Path | None) -> Authority:
    """The authority; its passphrase is read from the file or asked for, once a key turns out to be encrypted."""
    from deploy.provision import Authority
    from deploy.provision.passphrase import Passphrase, read_passphrase

    if secret is not None:
        return Authority(pki, Passphrase(lambda: read_passphrase(secret.expanduser())))
    terminal = sys.stdin.isatty()
    return Authority(pki, Passphrase(lambda: _asked(again=False)) if terminal else None)


def _new_secret(file: Path | None, ask: bool) -> Passphrase:
    from deploy.provision.passphrase import Passphrase, read_passphrase

    if file is not None:
        return Passphrase(lambda: read_passphrase(file.expanduser()))
    if ask and not sys.stdin.isatty():
        raise DeployError("A new passphrase can be asked for in a terminal only: give it with a file.")
    return Passphrase(lambda: _asked(again=True)) if ask else Passphrase()


def _asked(*, again: bool) -> bytes:
    return str(
        typer.prompt("Passphrase of the authority", hide_input=True, confirmation_prompt=again, err=True)
    ).encode()


def _register(authority: Authority, name: str, connection: str | None) -> None:
    if connection is None:
        return
    from deploy.provision.supernode import register as register_node

    member = authority.index().members.get(name)
    if member is None or member.revoked is not None:
        raise DeployError(f"{name!r} is not enrolled: 'umbel provision list' shows who is.")
    _line(f"Registered the SuperNode of {name} as {register_node(authority, member, connection)}.")


def _line(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
