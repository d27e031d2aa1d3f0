"""Inventories: read from files, found on the host, changed by a what-if, and what is said of a wrong one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InputFileError, UsageError
from planner.device_catalogue import find_spec
from planner.inventory import DeviceGroup, Machine, changed
from planner.inventory_reading import as_description, parse_inventory
from planner.what_if import parse_devices
from tokenyard.inventory_file import parse_gpus, read_inventory, this_host

GIB = 1 << 30
GOOD = """
[[machine]]
name = "big"
price_per_hour = 12.5
max_workers = 4
devices = [{kind = "A100-SXM4-80GB", count = 8}]

[[machine]]
names = ["small-1", "small-2"]
devices = [
    {kind = "L4", count = 2},
]

[[machine]]
name = "box"
interconnect = "pcie"
devices = [{kind = "cpu", count = 16, memory_gib = 64}]
"""


def read(text: str) -> tuple[Machine, ...]:
    return parse_inventory(tomllib.loads(text), "inv.toml", text)


def test_machines_are_read_with_what_the_catalogue_knows() -> None:
    big, first, second, box = read(GOOD)
    assert (big.name, big.interconnect, big.price_per_hour, big.max_workers) == ("big", "nvlink", 12.5, 4)
    assert big.groups == (DeviceGroup("A100-SXM4-80GB", 8, 80 * GIB),)
    assert first.alike == second.alike
    assert (first.name, second.name, first.interconnect, first.price_per_hour) == ("small-1", "small-2", "pcie", None)
    assert 22 * GIB < first.groups[0].memory_bytes < 24 * GIB
    assert box.groups[0].is_cpu


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("price_per_hour", "price_per_our", "inv.toml:4: machine.1.price_per_our: there is no such key; did you mean"),
        ("interconnect", "cables", "inv.toml:16: machine.3.cables: there is no such key; there are name,"),
        ("count = 2", "cont = 2", "inv.toml:11: machine.2.devices.1.cont: there is no such key; did you mean 'count'?"),
        ("name", "nmae", "inv.toml:3: machine.1.nmae: there is no such key; did you mean 'name'?"),
        ("devices", "devcies", "inv.toml:6: machine.1.devcies: there is no such key; did you mean 'devices'?"),
        ("count = 8", "count = -8", "inv.toml:6: machine.1.devices.1.count: Input should be greater"),
        ("count = 8", "count = 80", "inv.toml:2: big: 80 x A100-SXM4-80GB: no machine has more than 16"),
        ("count = 8", "count = 8, memory_gib = 800", "memory_gib 800 of A100-SXM4-80GB is impossible: one has 80 GiB"),
        (", memory_gib = 64", "", "inv.toml:14: box: memory_gib of 'cpu' is missing: say the machine's memory"),
        ('"L4"', '"Foo"', "inv.toml:8: small-1: memory_gib of 'Foo' is missing: say the memory of one device"),
        ("max_workers = 4", "max_workers = 4\nmin_workers = 5", "big: min_workers 5 is above max_workers 4"),
        ('"small-2"', '"big"', "inv.toml: the machine 'big' is there twice"),
        ('name = "big"', "", "machine 1: it has no name"),
        ('"pcie"', '"tape"', "inv.toml:16: machine.3.interconnect: Input should be 'nvlink' or 'pcie'"),
        ("12.5", "-1", "inv.toml:4: machine.1.price_per_hour: Input should be greater than or equal to 0"),
        (
            '{kind = "L4", count = 2},',
            '{kind = "L4", count = 2}, {kind = "NVIDIA L4", count = 1},',
            "small-1: a kind of device is there twice",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        read(GOOD.replace(old, new, 1))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], {}, {"machine": []}, {"machine": [{}]}, {"machines": [1]}])
def test_what_is_no_inventory_is_said(value: object) -> None:
    with pytest.raises(UsageError, match=r"^inv\.toml"):
        parse_inventory(value, "inv.toml")


def test_files(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "i.toml", tmp_path / "i.json"
    toml.write_text(GOOD)
    machines = read_inventory(toml)
    as_json.write_text(json.dumps({"machine": [{"name": "a", "devices": [{"kind": "L4"}]}]}))
    assert read_inventory(as_json)[0].groups[0].kind == machines[1].groups[0].kind
    as_json.write_text('{"machine": [\n{"name": "a", "devices": [],\n"size": 1}]}')
    with pytest.raises(UsageError, match=r"i\.json:\d: machine\.1\."):
        read_inventory(as_json)
    as_json.write_text("{,}")
    with pytest.raises(UsageError, match=r"i\.json:1: no JSON"):
        read_inventory(as_json)
    toml.write_text("[[machine]\n")
    with pytest.raises(UsageError, match=r"no TOML .*line 1"):
        read_inventory(toml)
    toml.write_bytes(b"\xff\xfe")
    with pytest.raises(InputFileError, match="is no text"):
        read_inventory(toml)
    with pytest.raises(InputFileError, match="cannot read the inventory"):
        read_inventory(tmp_path / "nowhere.toml")


@given(
    st.lists(
        st.tuples(st.sampled_from(["L4", "T4", "H100-SXM-80GB"]), st.integers(1, 16)),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: pair[0],
    ),
    st.sampled_from(["pcie", "nvlink"]),
)
def test_a_description_is_read_back(devices: list[tuple[str, int]], interconnect: str) -> None:
    groups = tuple(DeviceGroup(kind, n, (find_spec(kind) or pytest.fail()).memory_bytes) for kind, n in devices)
    machines = (Machine("a", groups, interconnect),)  # type: ignore[arg-type]
    (back,) = parse_inventory(as_description(machines), "x")
    assert (back.name, back.interconnect) == ("a", interconnect)
    for one, other in zip(back.groups, groups, strict=True):
        assert (one.kind, one.count) == (other.kind, other.count)
        assert one.memory_bytes == pytest.approx(other.memory_bytes, rel=0.001)


def test_gpus_are_read_from_nvidia_smi() -> None:
    groups = parse_gpus("NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-SXM4-80GB, 81920\nNVIDIA L4, 23034\nno, [N/A]\n\n")
    assert groups == (DeviceGroup("NVIDIA A100-SXM4-80GB", 2, 81920 << 20), DeviceGroup("NVIDIA L4", 1, 23034 << 20))
    assert parse_gpus("command not found") == ()


def test_this_host_has_devices() -> None:
    machine = this_host("here")
    assert machine.name == "here"
    assert all(group.count >= 1 and group.memory_bytes > GIB // 4 for group in machine.groups)


class TestWhatIf:
    def test_more_are_a_machine_of_their_own(self) -> None:
        machines = changed(read(GOOD), parse_devices("+2xL4+1xT4"))
        assert [(m.name, m.groups[0].kind, m.groups[0].count) for m in machines[4:]] == [
            ("what-if-1", "L4", 2),
            ("what-if-2", "T4", 1),
        ]

    def test_fewer_are_taken_from_the_last(self) -> None:
        machines = changed(read(GOOD), parse_devices("-3xL4"))
        assert [(m.name, m.groups[0].count) for m in machines] == [("big", 8), ("small-1", 1), ("box", 16)]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("-9xL4", "9 L4 cannot go: there are 4"),
            ("+1xFoo", "the memory of 'Foo' is not known"),
            ("+1xL4 tp 2", "the plan chooses the degree"),
            ("+17xL4", "no machine has more than 16"),
        ],
    )
    def test_what_cannot_be_is_said(self, text: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            changed(read(GOOD), parse_devices(text))

    def test_something_must_be_left(self) -> None:
        with pytest.raises(UsageError, match="no device is left"):
            changed(read(GOOD)[1:3], parse_devices("-4xL4"))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("NVIDIA L40S", "L40S"),
        ("L40S-48GB", "L40S"),
        ("L4-24GB(GCP,Helix)", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("Tesla T4", "T4"),
    ],
)
def test_devices_are_found_by_what_they_are_called(name: str, spec: str) -> None:
    found = find_spec(name)
    assert found is not None
    assert found.name == spec


def test_no_device_is_found_by_another_name() -> None:
    assert find_spec("L400") is None
    assert find_spec("cpu") is None
