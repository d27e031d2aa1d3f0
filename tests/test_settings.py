"""Settings: flags before the environment before the file, and one clear line where a value is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*Settings.model_fields, "config"]:
        monkeypatch.delenv(f"TOKENYARD_{name.upper()}", raising=False)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tokenyard.toml"
    monkeypatch.setenv("TOKENYARD_CONFIG", str(path))
    return path


def refused() -> str:
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_valid() -> None:
    found = load_settings()
    assert found.model_dump() == {name: field.default for name, field in Settings.model_fields.items()}
    assert found.pool == "default"


def test_flags_before_environment_before_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('pool = "of-file"\npolicy = "round_robin"\nmax_attempts = 7\n')
    monkeypatch.setenv("TOKENYARD_POOL", "of-environment")
    monkeypatch.setenv("TOKENYARD_POLICY", "power_of_two")
    found = load_settings(pool="of-flag", policy=None)
    assert (found.pool, found.policy, found.max_attempts) == ("of-flag", "power_of_two", 7)


def test_the_file_may_be_replaced_between_two_readings(config: Path) -> None:
    config.write_text("max_attempts = 7")
    assert load_settings().max_attempts == 7
    config.write_text("max_attempts = 8")
    assert load_settings().max_attempts == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_TTL_S", "soon"),
        ("LEASE_TTL_S", "0"),
        ("HEARTBEAT_INTERVAL_S", "60"),
        ("DEAD_AFTER_S", "nan"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_ATTEMPTS", "2.5"),
        ("RESULT_TTL_S", "-1"),
        ("POOL", "two words"),
        ("POOL", "{brace}"),
        ("POOL", ""),
    ],
)
def test_a_bad_value_in_the_environment_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TOKENYARD_{name}", value)
    assert f"TOKENYARD_{name}" in refused()


def test_a_bad_value_in_the_file_names_the_setting(config: Path) -> None:
    config.write_text('window_jobs = "all"')
    assert "window_jobs" in refused()


def test_a_file_that_is_not_there_is_named(config: Path) -> None:
    assert str(config) in refused()


def test_a_folder_is_no_file(config: Path) -> None:
    config.mkdir()
    assert str(config) in refused()


@pytest.mark.parametrize("content", [b"pool = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    assert str(config) in refused()


def test_the_address_with_its_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENYARD_REDIS_URL", "redis://:hush@host:1/0")
    found = load_settings()
    assert "hush" not in repr(found)
    assert found.redis_url is not None
    assert "hush" in found.redis_url.get_secret_value()
