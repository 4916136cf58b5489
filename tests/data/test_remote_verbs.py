"""The verbs that look into data sets, on one in object storage."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.s3 import S3Server, client, s3_server, upload
from tests.data.test_inspection import flip, rows_of
from tests.test_pages import Page

from mofi_lightning.data import downloads
from mofi_lightning.data.bench import bench
from mofi_lightning.data.inspection import verify
from mofi_lightning.data.sample import sample
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.data.stats import stats
from mofi_lightning.types import InputError


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.001)
    with s3_server() as server:
        yield server


def test_stats_and_verify_say_of_a_remote_data_set_what_they_say_of_its_folder(
    dataset, server, capsys, tmp_path
):
    upload(dataset, "s3://verbs/whole")
    stats(str(dataset))
    verify(str(dataset))
    local = capsys.readouterr().out
    stats("s3://verbs/whole")
    verify("s3://verbs/whole")
    assert capsys.readouterr().out == local.replace(str(dataset), "s3://verbs/whole")
    assert {n for path, n in server.downloads.items() if path.endswith(".bin")} == {1}


def test_damage_in_storage_is_named_and_left_out_of_a_clean_copy(dataset, server, rows, tmp_path):
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    bad = int(ShardReader(open_dataset(damaged)).first_rows[1])
    flip(damaged / "shards" / "chunk-000001.bin", rows[bad].image)
    upload(damaged, "s3://verbs/damaged")
    with pytest.raises(InputError, match=f"1 of {len(rows)} rows are bad: row {bad} '{rows[bad].key}'"):
        verify("s3://verbs/damaged")
    verify("s3://verbs/damaged", clean=tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == rows[:bad] + rows[bad + 1 :]


def test_a_chunk_that_cannot_be_fetched_is_named_and_no_copy_without_its_rows_is_made(
    dataset, server, rows, tmp_path, capsys
):
    upload(dataset, "s3://verbs/lost")
    client().delete_object(Bucket="verbs", Key="lost/shards/chunk-000002.bin")
    size = ShardReader(open_dataset(dataset)).chunk_sizes[2]
    with pytest.raises(
        InputError, match=rf"^s3://verbs/lost: {size} of {len(rows)} rows .*chunk-000002\.bin"
    ):
        verify("s3://verbs/lost")
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(InputError, match=r"no clean copy of .*chunk-000002\.bin"):
        verify("s3://verbs/lost", clean=tmp_path / "clean")
    assert not (tmp_path / "clean").exists()
    sample("s3://verbs/lost", tmp_path / "s.html", rows=2)


def test_a_sample_fetches_few_chunks(dataset, server, tmp_path):
    upload(dataset, "s3://verbs/sampled")
    sample("s3://verbs/sampled", tmp_path / "s.html", rows=20)
    page = Page((tmp_path / "s.html").read_text())
    assert [tag for tag, _ in page.tags].count("img") == 20
    assert len([path for path in server.downloads if path.endswith(".bin")]) <= 4


@pytest.mark.slow
def test_bench_fetches_anew_and_leaves_nothing(dataset, server, tmp_path, capsys):
    upload(dataset, "s3://verbs/fast")
    stats("s3://verbs/fast")
    before = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    server.set()
    bench("s3://verbs/fast", size=16, num_workers=2, seconds=0.2)
    assert "training is fed" in capsys.readouterr().out
    assert any(path.endswith(".bin") for path in server.downloads)
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == before
