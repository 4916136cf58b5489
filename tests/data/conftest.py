"""Data sets of the real emoji slice, labelled with its truth."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from mofi_lightning.data.datamodule import DataSource, I2EDataModule
from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.data.schema import Row
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def vocabulary(emoji_slice: Path) -> EntityVocabulary:
    entities = pq.read_table(emoji_slice / "knowledge_base.parquet").to_pylist()
    columns = [[e[name] for e in entities] for name in ("id", "name", "description")]
    return EntityVocabulary.from_columns(*columns, [4] * len(entities))


@pytest.fixture(scope="session")
def rows(emoji_slice: Path, vocabulary: EntityVocabulary) -> list[Row]:
    """The training pairs; every third without entity, every fifth with a second one."""
    class_ids = {entity: class_id for class_id, entity in enumerate(vocabulary.ids)}
    truth = pq.read_table(emoji_slice / "truth.parquet").to_pylist()
    shown = {t["key"]: class_ids[t["entity"]] for t in truth if t["split"] == "train"}
    labelled = []
    for n, row in enumerate(PairsReader(emoji_slice / "train.parquet")):
        entities = (shown[row.key], *([(shown[row.key] + 1) % len(vocabulary)] if n % 5 == 0 else []))
        entities = () if n % 3 == 0 else entities
        labelled.append(
            row._replace(entities=entities, scores=tuple(0.5 / (i + 1) for i in range(len(entities))))
        )
    return labelled


def in_chunks(size: int, rows: list[Row], output: Path, vocabulary: EntityVocabulary) -> Path:
    """A data set in chunks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", size)
        write_dataset(rows, output, vocabulary)
    return output


@pytest.fixture(scope="session")
def i2e(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], vocabulary: EntityVocabulary) -> Path:
    """A data set with entities, in three chunks."""
    return in_chunks(120_000, rows, tmp_path_factory.mktemp("i2e") / "i2e", vocabulary)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], vocabulary: EntityVocabulary) -> Path:
    """A data set with entities, in about a dozen chunks."""
    return in_chunks(30_000, rows, tmp_path_factory.mktemp("dataset") / "i2e", vocabulary)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """A data set without entities: 50 pairs."""
    output = tmp_path_factory.mktemp("plain") / "plain"
    write_dataset((row._replace(entities=(), scores=()) for row in rows[:50]), output)
    return output


@pytest.fixture(scope="session")
def tokenizer(rows: list[Row]) -> Tokenizer:
    return Tokenizer.train((row.text for row in rows), 400)


PREPROCESS = Preprocess(size=24, interpolation="bilinear")
MakeData = Callable[..., I2EDataModule]


@pytest.fixture
def make_data(tokenizer: Tokenizer) -> MakeData:
    """A datamodule of {name: (path, rows)}, as it is after a trainer and a model took it."""

    def make(
        sources: dict[str, tuple[Path, int]],
        max_steps: int = 12,
        rank: int = 0,
        world_size: int = 1,
        **options: object,
    ) -> I2EDataModule:
        options = {"augmentation": Augmentation(brightness=0.2), "num_workers": 0, **options}
        data = I2EDataModule({name: DataSource(str(p), n) for name, (p, n) in sources.items()}, **options)
        data.use(PREPROCESS, tokenizer, 32)
        data.trainer = SimpleNamespace(max_steps=max_steps, global_rank=rank, world_size=world_size)
        return data

    return make
