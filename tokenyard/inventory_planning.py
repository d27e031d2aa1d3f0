"""The search over an inventory as re-planning asks for it, from what a person names: files, a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.inventory_planning import InventoryPlanning
from planner.planning import Planning
from tokenyard.inventory_file import read_inventory
from tokenyard.kernel_database import known_rates
from tokenyard.model_config import read_model
from tokenyard.planning import read_measured, space_of


@dataclass(frozen=True, slots=True)
class InventoryChoice:
    """What a pool is planned over.

    Attributes:
        inventory: file of the machines.
        model: what workers load: folder or name.
        served_names: names that requests call it by; its own where there are none.
        profiles: files and folders of profiles, beside the pool's own records.
        dtypes: precisions that are allowed; the model's own where there are none.
        seats: values of max_num_seqs to try; the usual ones where there are none.
        utilization: share of a GPU's memory that engines use.
        context_tokens: longest prompt plus output that every engine must take; 0: none is asked for.
    """

    inventory: Path
    model: str
    served_names: tuple[str, ...] = ()
    profiles: tuple[Path, ...] = ()
    dtypes: tuple[str, ...] = ()
    seats: tuple[int, ...] = ()
    utilization: float = 0.9
    context_tokens: int = 0


def planning_for(choice: InventoryChoice) -> Planning:
    """The search over the machines of an inventory.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: it makes no sense; says where.
    """
    shape = read_model(choice.model)
    space = space_of(shape, choice.dtypes, choice.seats, choice.utilization, choice.context_tokens)
    return InventoryPlanning(
        machines=read_inventory(choice.inventory),
        space=space,
        worker=("--model", choice.model, *(word for name in choice.served_names for word in ("--served-name", name))),
        names=(*choice.served_names, choice.model),
        measured=tuple(read_measured(choice.profiles, [])),
        rates=known_rates(),
    )
