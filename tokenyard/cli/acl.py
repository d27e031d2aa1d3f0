"""The command that prints the Redis users of each role."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer

from broker.acl import Role, acl_line, setuser_command, user_of
from broker.errors import TokenyardError, UsageError
from broker.settings import load_settings
from broker.tenant_names import DEFAULT_TENANT
from tokenyard.cli.runtime import fail

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(acl)


def acl(
    role: Annotated[list[Role] | None, typer.Option(help="Only this role (repeatable); all otherwise.")] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="Pool that they work in (repeatable) [TOKENYARD_POOL].", show_default=False)
    ] = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="Tenant: a client for each (repeatable).", show_default=False)
    ] = None,
    passwords: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A file for each user's password: read, or made with a new one.", file_okay=False
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="What the users' names begin with.")] = "tokenyard",
    setuser: Annotated[
        bool, typer.Option("--setuser", help="Commands for redis-cli in place of lines for an ACL file.")
    ] = False,
) -> None:
    """Print Redis users with the least rights that each role needs: lines for the server's ACL file.

    Without --passwords they are switched off until they are given one.
    """
    try:
        pools = _checked(pool or [load_settings().pool], "--pool")
        _checked([prefix], "--prefix")
        for line in _lines(role or list(Role), pools, tenant or [DEFAULT_TENANT], prefix, passwords):
            typer.echo(setuser_command(line) if setuser else line)
    except TokenyardError as e:
        fail(str(e), e.exit_code)


def _lines(roles: list[Role], pools: list[str], tenants: list[str], prefix: str, passwords: Path | None) -> list[str]:
    users = [
        user_of(role, pools, tenant=tenant, prefix=prefix)
        for role in roles
        for tenant in (tenants if role is Role.CLIENT else [DEFAULT_TENANT])
    ]
    return [acl_line(user, _password(passwords, user.name) if passwords else None) for user in users]


def _checked(names: list[str], option: str) -> list[str]:
    """Names that may stand in an ACL rule as they are.

    Raises:
        UsageError: one may not.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{option} {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
    return names


def _password(folder: Path, user: str) -> str:
    """The password of a user, from its file; a new one where there is no file.

    Raises:
        UsageError: the file cannot be read or made.
    """
    path = folder / user
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
        password = path.read_text().strip()
    except OSError as error:
        raise UsageError(f"cannot use {path} ({error.strerror}): give a folder of yours to --passwords") from None
    if not password:
        raise UsageError(f"{path} is empty: write a password into it, or remove it for a new one")
    return password
