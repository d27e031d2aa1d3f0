"""Parquet: a file of any size, in bounded memory; killed, the same call goes on. pip install 'tokenyard[arrow]'"""

# pyright: reportMissingImports=false

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tokenyard import Client
from tokenyard.integrations import map_parquet

with tempfile.TemporaryDirectory() as folder, Client() as client:
    source, target = Path(folder, "questions.parquet"), Path(folder, "answers.parquet")
    pq.write_table(pa.table({"question": ["What is 2 + 2?", None, "What is 3 + 3?"]}), source)
    print(map_parquet(client, source, target, "question", batch="sums", max_tokens=8), "rows")
    print(pq.read_table(target).to_pylist())
