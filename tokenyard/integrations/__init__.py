"""The client for tables: pandas, Arrow and Parquet, Hugging Face datasets, Ray Data; each library optional."""

from __future__ import annotations

from tokenyard.integrations.arrow import map_parquet, map_table
from tokenyard.integrations.columns import answers
from tokenyard.integrations.frames import map_frame
from tokenyard.integrations.hugging_face import map_dataset
from tokenyard.integrations.stage import ColumnStage

__all__ = ["ColumnStage", "answers", "map_dataset", "map_frame", "map_parquet", "map_table"]
