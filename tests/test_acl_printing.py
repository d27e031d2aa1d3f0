"""``tokenyard acl``: what it prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from acl_server import POOL, AclServer, acl_server, binary_of
from cli_process import ROOT
from typer.testing import CliRunner

from broker.acl import Role, acl_line, setuser_command, user_of
from broker.errors import UsageError
from tokenyard.cli import app


@pytest.fixture(params=["valkey", "redis"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AclServer]:
    async with acl_server(binary_of(request.param), tmp_path, POOL) as running:
        yield running


class TestPrinting:
    def invoke(self, *words: str) -> str:
        result = CliRunner().invoke(app, ["acl", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    def test_every_role_is_printed_and_off_without_passwords(self) -> None:
        lines = self.invoke("--pool", "p").splitlines()
        assert [line.split()[1] for line in lines] == [f"tokenyard-{role.value}" for role in Role]
        assert all(" off " in line and "#" not in line for line in lines)

    def test_passwords_are_made_once_kept_private_and_not_printed(self, tmp_path: Path) -> None:
        words = ["--pool", "p", "--role", "client", "--tenant", "acme", "--passwords", str(tmp_path / "new")]
        first = self.invoke(*words)
        kept = tmp_path / "new" / "tokenyard-client-acme"
        assert kept.stat().st_mode & 0o077 == 0
        assert kept.read_text().strip() not in first
        assert first == self.invoke(*words)
        assert first == acl_line(user_of(Role.CLIENT, ["p"], tenant="acme"), kept.read_text().strip()) + "\n"

    async def test_the_commands_for_redis_cli_make_the_same_users(self, server: AclServer) -> None:
        admin = server.connect(server.url())
        for role in Role:
            line = acl_line(user_of(role, ["p"]), "right")
            before = await admin.execute_command("ACL", "GETUSER", f"tokenyard-{role.value}")
            await admin.execute_command(*shlex.split(setuser_command(line)))
            assert await admin.execute_command("ACL", "GETUSER", f"tokenyard-{role.value}") == before

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--pool", "a b"], "--pool 'a b'"),
            (["--pool", "*"], "--pool '*'"),
            (["--prefix", "x ~*"], "--prefix 'x ~*'"),
            (["--tenant", "batch_x"], "tenant 'batch_x'"),
            (["--tenant", "*"], "tenant '*'"),
        ],
    )
    def test_names_that_would_mean_more_in_a_rule(self, words: list[str], said: str) -> None:
        result = CliRunner().invoke(app, ["acl", *words])
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stdout == ""

    def test_the_commands_of_the_documentation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        text = (ROOT / "docs" / "security.md").read_text()
        commands = re.findall(r"^tokenyard acl ([^>#\n]*)", text, re.MULTILINE)
        assert len(commands) >= 2
        for words in commands:
            assert self.invoke(*shlex.split(words))
        for name in re.findall(r"secrets/(tokenyard-[a-z-]+)", text):
            assert (tmp_path / "secrets" / name).is_file()

    def test_only_a_client_is_of_a_tenant(self) -> None:
        with pytest.raises(UsageError, match="leave --tenant to the client"):
            user_of(Role.WORKER, ["p"], tenant="acme")
