import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.data.s3 import S3Server, client, s3_server, upload

from mofi_lightning.data import downloads
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.data.storage import Cache
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import Batch, InputError

URI = "s3://streams/some/data"


@pytest.fixture(scope="module")
def served(dataset) -> Iterator[S3Server]:
    """A server with the data set at `URI`."""
    with s3_server() as server:
        upload(dataset, URI)
        yield server


@pytest.fixture
def server(served, monkeypatch) -> S3Server:
    served.set()
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.001)
    return served


@pytest.fixture
def log(tmp_path) -> Iterator[Path]:
    """What storage logs in this process and its workers."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger(downloads.__name__).addHandler(handler)
    yield tmp_path / "log"
    logging.getLogger(downloads.__name__).removeHandler(handler)
    handler.close()


def small_cache(dataset: Path, folder: Path) -> Cache:
    """A cache with room for about a third of the chunks."""
    sizes = [chunk.stat().st_size for chunk in (dataset / "shards").glob("*.bin")]
    assert len(sizes) >= 10
    return Cache(str(folder / "cache"), max(2 * max(sizes), sum(sizes) / 3) / 1e9)


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch["key"] == other["key"]
        assert torch.equal(batch["image"], other["image"])
        assert torch.equal(batch["text"].input_ids, other["text"].input_ids)
        assert torch.equal(batch["entity"], other["entity"])


def test_a_stream_from_storage_that_fails_now_and_then_is_that_of_the_folder(
    dataset, server, make_data, tmp_path, log
):
    server.set(failures=0.05, seed=1)
    cache = small_cache(dataset, tmp_path)
    options = {"max_steps": 24, "num_workers": 2}
    expected = list(make_data({"i2e": (dataset, 8)}, **options).train_dataloader())
    remote = list(make_data({"i2e": (URI, 8)}, cache=cache, **options).train_dataloader())
    assert_same(remote, expected)
    chunks = {path: n for path, n in server.downloads.items() if path.endswith(".bin")}
    assert max(chunks.values()) > 1, "chunks were evicted and fetched again"
    assert server.failures > 0
    assert f"{URI}/shards/chunk-" in log.read_text() and "of 6 failed" in log.read_text()


def test_rows_of_object_storage_are_those_of_the_folder(dataset, server, tmp_path, rows):
    info = open_dataset(URI, small_cache(dataset, tmp_path))
    assert info.fingerprint == open_dataset(dataset).fingerprint
    assert info.vocabulary == open_dataset(dataset).vocabulary
    reader = ShardReader(info)
    assert [reader[i] for i in range(len(reader))] == rows
    reader.prefetch(range(len(reader.chunk_names)))
    assert [reader[i] for i in range(len(reader))] == rows


def test_nothing_is_fetched_again_from_a_warm_cache(dataset, server, tmp_path, rows):
    for expected in (len(list((dataset / "shards").glob("*.bin"))), 0):
        server.set()
        reader = ShardReader(open_dataset(URI, Cache(str(tmp_path))))
        assert [reader[i] for i in range(len(reader))] == rows
        assert sum(n for path, n in server.downloads.items() if path.endswith(".bin")) == expected


def test_a_chunk_that_storage_has_lost_ends_the_stream_with_its_name(dataset, server, make_data, tmp_path):
    upload(dataset, "s3://streams/lossy")
    lost = sorted((dataset / "shards").glob("*.bin"))[3].name
    client().delete_object(Bucket="streams", Key=f"lossy/shards/{lost}")
    data = make_data({"i2e": ("s3://streams/lossy", 8)}, cache=Cache(str(tmp_path)), num_workers=1)
    with pytest.raises(InputError, match=f"^s3://streams/lossy/shards/{lost} does not exist"):
        list(data.train_dataloader())


def test_a_place_without_a_data_set_is_named(server, tmp_path):
    with pytest.raises(InputError, match=r"^s3://streams/nothing/dataset\.json does not exist"):
        open_dataset("s3://streams/nothing", Cache(str(tmp_path)))


def test_a_data_set_that_was_written_anew_under_its_uri_replaces_the_one_that_was_cached(
    server, rows, vocabulary, tmp_path, monkeypatch
):
    uri, cache = "s3://streams/anew", Cache(str(tmp_path / "cache"))

    def written(name: str, entities: EntityVocabulary) -> list[str]:
        write_dataset(rows, tmp_path / name, entities)
        upload(tmp_path / name, uri)
        info = open_dataset(uri, cache)
        reader = ShardReader(info)
        assert [reader[i] for i in range(len(reader))] == rows
        assert info.vocabulary is not None
        return list(info.vocabulary.names)

    names = [f"renamed {name}" for name in vocabulary.names]
    columns = (list(vocabulary.ids), names, list(vocabulary.descriptions), list(vocabulary.counts))
    assert written("first", vocabulary) == list(vocabulary.names)
    assert written("renamed", EntityVocabulary.from_columns(*columns)) == names
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 30_000)
    assert written("in other chunks", vocabulary) == list(vocabulary.names)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_damaged_copy_of_an_intact_chunk_is_fetched_again(dataset, server, tmp_path, rows, zeros):
    info = open_dataset(URI, Cache(str(tmp_path)))
    reader = ShardReader(info)
    assert reader[0] == rows[0]
    copy = info.path / "shards" / reader.chunk_names[0]
    content = bytearray(copy.read_bytes())
    if zeros:
        content = bytearray(len(content))
    else:
        content[content.index(rows[0].image) + 20] ^= 1
    copy.write_bytes(content)
    again = ShardReader(info)
    assert [again[i] for i in range(len(again))] == rows


def test_a_server_cannot_fill_the_disk(dataset, server, tmp_path):
    upload(dataset, "s3://streams/large")
    chunk = sorted((dataset / "shards").glob("*.bin"))[0]
    body = chunk.read_bytes()
    client().put_object(Bucket="streams", Key=f"large/shards/{chunk.name}", Body=body + bytes(10**7))
    reader = ShardReader(open_dataset("s3://streams/large", Cache(str(tmp_path))))
    with pytest.raises(InputError, match=f"has more than {len(body):,} bytes"):
        reader[0]
    client().put_object(Bucket="streams", Key="large/dataset.json", Body=bytes(10**7))
    with pytest.raises(InputError, match=r"dataset\.json has more than 1,048,576 bytes"):
        open_dataset("s3://streams/large", Cache(str(tmp_path)))
    assert not list(tmp_path.rglob("*.part"))
