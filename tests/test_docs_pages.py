"""What the pages about GPUs and limits name is there: commands, options, settings and numbers."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from cli_process import ROOT
from test_compose import parse_command

from broker.openai_batch import MAX_CUSTOM_ID_CHARS
from broker.plan_record import MOST_WORKERS
from broker.pool_plan import MAX_PLAN_BYTES
from broker.settings import Settings
from broker.tenant_reader import MOST_TENANTS
from broker.token_news import TTL_S
from tokenyard.client.batch_keys import batch_id_of

GPU = (ROOT / "docs" / "gpu.md").read_text()
LIMITS = (ROOT / "docs" / "limits.md").read_text()
PLACEMENT = (ROOT / "docs" / "placement.md").read_text()
_UNITS = {"MiB": 2**20, "GiB": 2**30, "days": 86_400, "minutes": 60}
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]+)?\)")


def commands(text: str) -> list[list[str]]:
    """Every ``tokenyard`` call of a page, as words."""
    found: list[list[str]] = []
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] == "tokenyard":
                found.append(words)
    return found


@pytest.mark.parametrize("words", commands(GPU), ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    parse_command(words)


def test_options_in_the_tables_are_ours() -> None:
    rows = re.findall(r"^\| `(--[^`]+)` \|", GPU, re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        parse_command(["tokenyard", "worker", "--model", "m", *shlex.split(row)])


def test_what_is_handed_to_vllm_is_an_option_of_it() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vllm is not installed")
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py").read_text()  # to import it takes long
    [arguments] = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "EngineArgs"]
    fields = {n.target.id for n in arguments.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    named = set(re.findall(r"--engine-arg ([a-z-]+)=", GPU))
    assert len(named) >= 3
    assert {name.replace("-", "_") for name in named | {"max-num-seqs"}} <= fields


def limits() -> dict[str, tuple[float, str]]:
    """The table of sizes and times: what -> number in its unit, setting."""
    table = LIMITS.partition("| what | limit | setting |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) ?(\w*) \| (?:`TOKENYARD_(\w+)`)? ?\|$", table, re.MULTILINE)
    return {what: (int(number.replace(",", "")) * _UNITS.get(unit, 1), name) for what, number, unit, name in rows}


def test_limits_are_what_the_settings_say() -> None:
    named = {name.lower(): number for number, name in limits().values() if name}
    assert len(named) >= 7
    assert {name: Settings.model_fields[name].default for name in named} == named


def test_limits_without_a_setting() -> None:
    [letters] = re.findall(r"LETTERS, \w+ = (\d+)", (ROOT / "broker" / "scripts" / "lib.lua").read_text())
    numbers = {what: number for what, (number, name) in limits().items() if not name}
    assert numbers == {
        "a `custom_id`": MAX_CUSTOM_ID_CHARS,
        "a batch's key": 100,
        "tenants with requests that wait, served at a time": MOST_TENANTS,
        "workers in a plan": MOST_WORKERS,
        "a plan": MAX_PLAN_BYTES,
        "dead letters of a pool": int(letters),
        "a streamed answer's tokens are kept": TTL_S,
    }
    batch_id_of("x" * 100, "default")


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = (page.parent / path).resolve()
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{path}{anchor}"


def test_the_files_that_placement_names_are_there() -> None:
    named = set(re.findall(r"`((?:broker|policies|planner|tokenyard)/[\w/]+\.py)`", PLACEMENT))
    assert len(named) >= 8
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "broker" / name).exists(), name
