"""A corpus of real drawings, large enough to be interrupted."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def copies(emoji_slice: Path, folder: Path, times: int, group: int) -> Path:
    """The training pairs of the slice `times` over, under keys of their own; the pairs file."""
    folder.mkdir()
    table = pq.read_table(emoji_slice / "train.parquet")
    keys = table["key"].to_pylist()
    tables = [table.set_column(0, "key", pa.array([f"{n}/{key}" for key in keys])) for n in range(times)]
    pq.write_table(pa.concat_tables(tables), folder / "train.parquet", row_group_size=group)
    truth = pq.read_table(emoji_slice / "truth.parquet").to_pylist()
    rows = [{**row, "key": f"{n}/{row['key']}"} for n in range(times) for row in truth]
    pq.write_table(pa.Table.from_pylist(rows), folder / "truth.parquet")
    base = pq.read_table(emoji_slice / "knowledge_base.parquet")
    pq.write_table(base, folder / "knowledge_base.parquet")
    return folder / "train.parquet"
