import shutil

import numpy as np
import pytest

from mofi_lightning.data.inspection import stats, verify
from mofi_lightning.data.shards import write_dataset
from mofi_lightning.types import InputError


def test_stats_counts_rows_entities_and_sizes(i2e, rows, vocabulary, capsys):
    stats(i2e)
    out = " ".join(capsys.readouterr().out.split())
    labelled = sum(bool(row.entities) for row in rows) / len(rows)
    assert f"{len(rows)} rows with entity, image, text" in out
    assert f"{len(vocabulary)} entities; {labelled:.1%} of the rows" in out
    assert "image width 64 64 64 64 64" in out
    lengths = np.quantile([len(row.text) for row in rows], (0, 0.05, 0.5, 0.95, 1))
    assert "text characters " + " ".join(f"{value:.0f}" for value in lengths) in out


def test_an_intact_data_set_verifies(i2e, rows, capsys):
    verify(i2e)
    assert f"{len(rows)} rows are intact" in capsys.readouterr().out


def test_every_flipped_byte_in_a_row_is_found(plain, rows, tmp_path):
    for field in (rows[5].image, rows[5].text.encode(), rows[5].key.encode()):
        dataset = shutil.copytree(plain, tmp_path / "copy")
        (chunk,) = (dataset / "shards").glob("*.bin")
        data = bytearray(chunk.read_bytes())
        data[data.index(field) + len(field) // 2] ^= 1
        chunk.write_bytes(data)
        with pytest.raises(InputError, match=r"1 of 50 rows are bad: row 5 '.*' \(checksum\)"):
            verify(dataset)
        shutil.rmtree(dataset)


def test_stats_and_verify_count_the_same_bad_rows(rows, tmp_path, capsys):
    cut = rows[1]._replace(image=rows[1].image[: len(rows[1].image) // 2], entities=(), scores=())
    plain = [row._replace(entities=(), scores=()) for row in rows[:6]]
    write_dataset([*plain, cut, plain[2]], tmp_path / "d")  # cut: a key used twice and half an image
    (chunk,) = (tmp_path / "d" / "shards").glob("*.bin")
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[5].image) + 99] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(InputError, match="3 of 8 rows are bad"):
        verify(tmp_path / "d")
    stats(tmp_path / "d")
    assert "3 rows are bad (checksum: 1, image: 1, key used twice: 2)" in capsys.readouterr().out


def test_images_class_ids_and_keys_are_checked(tmp_path, rows, vocabulary):
    bad_image = rows[1]._replace(key="bad image", image=b"none")
    last = rows[2]._replace(key="beyond", entities=(len(vocabulary) - 1,), scores=(1.0,))
    write_dataset([rows[0], bad_image, last, rows[0]], tmp_path / "d", vocabulary)
    shorter = [c[:-1] for c in (vocabulary.ids, vocabulary.names, vocabulary.descriptions, vocabulary.counts)]
    type(vocabulary).from_columns(*shorter).save(tmp_path / "d")
    with pytest.raises(InputError) as caught:
        verify(tmp_path / "d")
    message = str(caught.value)
    assert "3 of 4 rows are bad" in message and "\n" not in message
    assert "'bad image' (image)" in message
    assert f"'beyond' (class id beyond the {len(vocabulary) - 1} entities)" in message
    assert f"{rows[0].key!r} (key used twice)" in message
