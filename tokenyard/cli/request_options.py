"""Options of several commands: which requests, and what engines may use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Requests: a CSV file with a header.")]
BatchFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Requests: an OpenAI Batch file instead.")]
MeanOutput = Annotated[
    float | None, typer.Option(min=1, max=1e6, help="Mean output tokens of a batch file; else its max_tokens.")
]
BytesPerToken = Annotated[
    float, typer.Option(min=0.1, max=1000, help="Bytes of a body for each prompt token, of a batch file.")
]
Dtypes = Annotated[list[str] | None, typer.Option(help="Precision that is allowed; else the model's own.")]
Seats = Annotated[list[int] | None, typer.Option(help="max_num_seqs to try; repeatable.")]
GpuMemory = Annotated[float, typer.Option(min=0.05, max=1.0, help="Share of a GPU's memory that engines use.")]
Context = Annotated[int, typer.Option(min=0, help="Prompt plus output that every engine must take, tokens.")]
