"""compose.yaml agrees with the command line and keeps the promises its comments make. Docker is not needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml

from tokenyard.cli import app

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "compose.yaml").read_text()
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def interpolated(text: str) -> str:
    """The text with every variable's default; a variable that must be set gets a value."""
    return VARIABLE.sub(lambda m: m["rest"] if m["kind"] == "-" else f"the-{m['name'].lower()}", text)


COMPOSE = cast("dict[str, Any]", yaml.safe_load(interpolated(TEXT)))
SERVICES = cast("dict[str, dict[str, Any]]", COMPOSE["services"])
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
SCALED = ["worker-cpu", "worker-gpu"]


def parse_command(words: list[str]) -> None:
    """Parse a command line as ``tokenyard`` would, without running it."""
    program, name, *arguments = words
    assert program == "tokenyard"
    group = typer.main.get_group(app)
    context = typer.Context(group)
    command = group.get_command(context, name)
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments, parent=context)


def test_has_redis_scheduler_and_both_workers() -> None:
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {"redis", "scheduler", "worker-cpu", "worker-gpu"}
    assert OURS == ["gateway", "scheduler", "worker-cpu", "worker-gpu"]


@pytest.mark.parametrize("name", OURS)
def test_every_command_parses(name: str) -> None:
    parse_command(SERVICES[name]["command"])
    assert SERVICES[name]["command"][1] == {"gateway": "serve"}.get(name, name.partition("-")[0])


def test_the_parser_does_refuse() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        parse_command([*SERVICES["worker-cpu"]["command"], "--no-such-option"])


@pytest.mark.parametrize("name", OURS)
def test_finds_redis_by_its_password(name: str) -> None:
    assert SERVICES[name]["environment"]["TOKENYARD_REDIS_URL"] == "redis://:the-tokenyard_redis_password@redis:6379/0"
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_refuses_to_start_without_a_password() -> None:
    uses = [m for m in VARIABLE.finditer(TEXT) if m["name"] == "TOKENYARD_REDIS_PASSWORD"]
    assert uses
    assert all(use["kind"] == "?" and use["rest"] for use in uses)


def test_redis_keeps_an_append_only_file_on_a_volume() -> None:
    redis = SERVICES["redis"]
    settings = dict(line.split(" ", 1) for line in COMPOSE["configs"]["redis"]["content"].splitlines())
    assert redis["command"] == ["redis-server", redis["configs"][0]["target"]]
    assert settings["requirepass"] == redis["environment"]["REDISCLI_AUTH"]
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert f"redis:{settings['dir']}" in redis["volumes"]
    assert "redis" in COMPOSE["volumes"]
    assert "ping" in redis["healthcheck"]["test"][1]


@pytest.mark.parametrize("name", SCALED)
def test_workers_can_be_scaled(name: str) -> None:
    assert not SERVICES[name].keys() & {"container_name", "ports", "hostname"}


def test_only_the_gpu_worker_reserves_a_gpu() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker-gpu"]


def test_the_dockerfile_has_what_compose_builds() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= targets
    for copied in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / path).exists() for path in copied.split()), copied
    for path in re.findall(r"requirements/[\w.-]+", dockerfile):
        assert (ROOT / path).is_file(), path
