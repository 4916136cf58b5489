"""The verb `mofi data sample`: a page of random rows, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mofi_lightning.pages import require_html, write_page
from mofi_lightning.progress import track
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import numpy as np

# A chunk of remote data must be fetched whole.
_REMOTE_CHUNKS = 4


def sample(path: str, output: Path = Path("sample.html"), rows: int = 48, seed: int = 1) -> None:
    """Write a page with random rows of a data set: pictures, texts, and entities with their scores.

    Each row is as likely as any other. Those of a remote data set come from four random chunks, so that no
    more need be fetched.

    Args:
        path: folder or URI of the data set.
        output: HTML file to write, which loads nothing; an older one is replaced.
        rows: number of rows; all if there are fewer.
        seed: of the choice; the same one chooses the same rows.

    Raises:
        InputError: there is no such data set, or `rows` is no positive number.
    """
    from mofi_lightning.data.sample_page import row_html
    from mofi_lightning.data.shards import ShardReader, open_dataset
    from mofi_lightning.data.storage import is_remote

    require_html(output)
    if rows < 1:
        raise InputError(f"a page needs 1 row or more, not {rows}")
    if seed < 0:
        raise InputError(f"a seed must be 0 or more, not {seed}")
    info = open_dataset(path)
    reader = ShardReader(info, check=False)
    remote = is_remote(info.location)
    chunks = _REMOTE_CHUNKS if remote else None
    chosen = choose_rows(reader.chunk_sizes, rows, seed, chunks)
    broken = {} if remote else reader.chunk_faults()
    items = "".join(
        f"<li>{row_html(reader, row, broken, info.vocabulary)}</li>"
        for row in track(chosen, "reading rows", len(chosen))
    )
    title = f"{len(chosen):,} random rows of {path}"
    about = f"{info.rows:,} rows with {', '.join(sorted(info.fields))}; seed {seed}."
    write_page(output, title, f'<p>{about}</p><ul class="rows">{items}</ul>')
    print(f"{len(chosen):,} of {info.rows:,} rows -> {output}")


def choose_rows(chunk_sizes: np.ndarray, rows: int, seed: int, chunks: int | None = None) -> list[int]:
    """Random rows, each once, in the order in which they are stored.

    Args:
        chunk_sizes: rows of each chunk, int64 `[chunks]`.
        rows: how many; all if there are fewer.
        seed: of the choice.
        chunks: the most chunks that the rows may come from; each row is then still as likely as any other,
            as long as the chunks are of equal size.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    if chunks is None or chunks >= len(chunk_sizes):
        total = int(chunk_sizes.sum())
        return sorted(generator.choice(total, min(rows, total), replace=False).tolist())
    drawn = np.sort(generator.choice(len(chunk_sizes), chunks, replace=False))
    first_rows = np.cumsum(chunk_sizes) - chunk_sizes
    pool = np.concatenate([np.arange(chunk_sizes[chunk]) + first_rows[chunk] for chunk in drawn])
    return sorted(generator.choice(pool, min(rows, len(pool)), replace=False).tolist())
