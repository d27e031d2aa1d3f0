"""A small folder of profiles, and clusters made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planner.fleet import Entry, KnownDevice, fleet, parse_profiles
from planner.simulate import Requests, SimulatedDevice

FITS = """device,model,tp,prefill_a_s,prefill_b_s_per_tok,prefill_c_s_per_tok2,\
decode_d_s,decode_e_s_per_req,decode_f_s_per_ctxtok
BIG-80GB,small-model,1,0.01,5e-5,2e-9,0.01,4e-5,8e-8
BIG-80GB,small-model,2,0.006,3e-5,1e-9,0.006,2e-5,4e-8
L4-24GB(here),small-model(scaled),1,0.02,2e-4,8e-9,0.03,1e-4,3e-7
L40S-48GB,small-model,1,0.02,1e-4,4e-9,0.02,4e-5,2e-7
T4-16GB,small-model,1,0.02,3e-4,9e-9,0.05,2e-4,4e-7
P4-8GB,small-model,1,0.02,3e-4,9e-9,0.05,2e-4,4e-7
"""
KV = """device,model,tp,free_kv_tokens_replica
BIG-80GB,small-model,1,100000
BIG-80GB,small-model,2,220000
L4-24GB(here),small-model(scaled),1,20000
L40S-48GB,small-model,1,50000
T4-16GB,small-model,1,0
"""


def profile_folder(folder: Path) -> Path:
    """Write the profiles there."""
    (folder / "fits.csv").write_text(FITS)
    (folder / "kv.csv").write_text(KV)
    return folder


def known() -> list[KnownDevice]:
    """The same without files."""
    return parse_profiles(_rows(FITS), _rows(KV), "here")


def devices(**counts: int) -> list[SimulatedDevice]:
    """A cluster by name and number of devices."""
    return fleet([Entry(device=name, count=n) for name, n in counts.items()], known(), {})


def requests(jobs: int, seed: int = 1, prompt: int = 400, output: int = 60) -> Requests:
    """A backlog of mixed lengths with about these means."""
    rng = np.random.default_rng(seed)
    prompts, outputs = rng.exponential(prompt, jobs), rng.exponential(output, jobs)
    return Requests(np.zeros(jobs), prompts.astype(np.int64) + 1, outputs.astype(np.int64) + 1)


def _rows(text: str) -> list[dict[str, str]]:
    header, *rows = (line.split(",") for line in text.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]
