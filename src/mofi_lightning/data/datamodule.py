"""The LightningDataModule over Images-to-Entities data sets."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from mofi_lightning.data.batching import BatchBuilder, Stream
from mofi_lightning.data.mixing import BadRowPolicy, BatchLoader, MixingLoader, Mixture
from mofi_lightning.data.order import CHUNKS_PER_GROUP, FileOrder, PassOrder
from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.data.shards import DatasetInfo, ShardReader, open_dataset
from mofi_lightning.data.storage import Cache, is_remote
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class DataSource:
    """A data set to train on.

    Attributes:
        path: its folder, or its URI in object storage (s3://bucket/folder, gs://, hf://datasets/...).
        rows: its rows of the *global* batch; a multiple of the number of ranks.
    """

    path: str
    rows: int


class I2EDataModule(LightningDataModule):
    """Streams batches that mix rows of one or more data sets.

    Training is one run of `trainer.max_steps` batches in which every source repeats at its own pace; each row
    comes once a pass. Validation reads held-out rows in their order, without augmentation, in equal batches
    of at most the training size; every rank gets the same number of them, and the few rows that do not fill
    the last share are left out. Rows that cannot be used are replaced by a later one and counted in
    `bad_rows`.

    Args:
        sources: by name.
        validation: held-out rows: a data set (folder or URI) or a pairs parquet file; null for no validation.
        texts: how a row's text is drawn.
        augmentation: of the training images.
        num_workers: processes a rank that load data; 0 loads in the training process.
        seed: of order, text and augmentation.
        bad_row_policy: what happens to rows that are damaged or whose image cannot be decoded.
        cache: where chunks of data sets in object storage are kept.
    """

    def __init__(
        self,
        sources: dict[str, DataSource],
        validation: str | None = None,
        texts: TextSampling = TextSampling(),
        augmentation: Augmentation = Augmentation(),
        num_workers: int = 1,
        seed: int = 1,
        bad_row_policy: BadRowPolicy = BadRowPolicy(),
        cache: Cache = Cache(),
    ) -> None:
        super().__init__()
        if not sources:
            raise InputError("data.sources is empty; name at least one data set to train on")
        if num_workers < 0:
            raise InputError(f"data.num_workers must be 0 or more, not {num_workers}")
        self.sources = sources
        self.validation = validation
        self.texts = texts
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.seed = seed
        self.bad_row_policy = bad_row_policy
        self.cache = cache
        self._encoder: tuple[Preprocess, Tokenizer | None, int] | None = None
        self._loaders: list[BatchLoader] = []

    def use(self, preprocess: Preprocess, tokenizer: Tokenizer | None, context_length: int) -> None:
        """Take over what the model expects; called before the loaders are made."""
        self._encoder = (preprocess, tokenizer, context_length)

    @cached_property
    def _datasets(self) -> dict[str, DatasetInfo]:
        return {name: open_dataset(source.path, self.cache) for name, source in self.sources.items()}

    @property
    def fields(self) -> dict[str, frozenset[str]]:
        """What the rows of each source carry: 'image', 'text' and possibly 'entity'."""
        return {name: info.fields for name, info in self._datasets.items()}

    @cached_property
    def vocabulary(self) -> EntityVocabulary | None:
        """The entities; None where no source carries any.

        Raises:
            InputError: two sources number different entities.
        """
        labelled = {
            name: info.vocabulary for name, info in self._datasets.items() if info.vocabulary is not None
        }
        for one, other in pairwise(labelled):
            _require_equal(f"source {one!r}", labelled[one], f"source {other!r}", labelled[other])
        return next(iter(labelled.values()), None)

    @property
    def bad_rows(self) -> dict[str, int]:
        """Number of rows that this rank had to replace so far, by "source: kind"."""
        return dict(sum((loader.bad_rows for loader in self._loaders), Counter()))

    def train_dataloader(self) -> MixingLoader:
        """`trainer.max_steps` batches; resumable at any of them."""
        steps = self._trainer().max_steps
        if steps < 1:
            raise InputError(
                "training is counted in steps: set trainer.max_steps, with trainer.max_epochs: -1"
            )
        streams: list[Stream] = []
        wanted = 0
        for name, source in self.sources.items():
            info = self._datasets[name]
            reader = ShardReader(info)
            wanted += reader.cache_bytes(2 * CHUNKS_PER_GROUP)
            seed = zlib.crc32(f"{self.seed}\0{name}".encode())
            order = PassOrder(reader.chunk_sizes, seed)
            streams.append(Stream(name, reader, order, source.rows, seed, info.fingerprint))
        self._check_cache(wanted)
        mixture = Mixture(streams, self._builder(self.augmentation), steps, *self._rank())
        loader = MixingLoader(mixture, self.num_workers, self.bad_row_policy)
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Equal batches of the held-out rows; none without `validation`."""
        if self.validation is None:
            return []
        reader = self._held_out(self.validation)
        rank, world_size = self._rank()
        batch_rows = sum(source.rows for source in self.sources.values())
        steps = -(-len(reader) // batch_rows)
        rows = len(reader) // steps // world_size * world_size
        if not rows:
            raise InputError(
                f"validation {self.validation} has {len(reader)} rows, fewer than {world_size} ranks"
            )
        stream = Stream("validation", reader, FileOrder(reader.chunk_sizes), rows, self.seed)
        mixture = Mixture([stream], self._builder(None), steps, rank, world_size)
        loader = BatchLoader(mixture, self.num_workers, self.bad_row_policy)
        self._loaders.append(loader)
        return loader

    def _check_cache(self, wanted: int) -> None:
        """Warn where the chunks that are open or fetched ahead do not fit into the cache."""
        if wanted > self.cache.gigabytes * 1e9:
            rank_zero_warn(
                f"a cache of {self.cache.gigabytes:g} GB holds less than the {wanted / 1e9:.3g} GB that are "
                "read at once: chunks will be fetched again and again; raise data.cache.gigabytes"
            )

    def _held_out(self, path: str) -> ShardReader | PairsReader:
        if not is_remote(path) and not Path(path).is_dir():
            if not Path(path).exists():
                raise InputError(f"no validation at {path}: give the folder of a data set or a pairs file")
            return PairsReader(path)
        info = open_dataset(path, self.cache)
        if info.vocabulary is not None and self.vocabulary is not None:
            _require_equal("training", self.vocabulary, f"validation {path}", info.vocabulary)
        return ShardReader(info)

    def _builder(self, augmentation: Augmentation | None) -> BatchBuilder:
        if self._encoder is None:
            raise RuntimeError(
                "I2EDataModule.use() tells it the model's preprocessing; call it before the loaders"
            )
        preprocess, tokenizer, context_length = self._encoder
        return BatchBuilder(preprocess, augmentation, self.texts, self.vocabulary, tokenizer, context_length)

    def _trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("I2EDataModule makes loaders for a trainer; pass it to Trainer.fit")
        return self.trainer

    def _rank(self) -> tuple[int, int]:
        return self._trainer().global_rank, self._trainer().world_size


def _require_equal(one: str, mine: EntityVocabulary, other: str, theirs: EntityVocabulary) -> None:
    if mine != theirs:
        raise InputError(
            f"{one} ({len(mine)} entities) and {other} ({len(theirs)} entities) number different entities; "
            "curate them with one vocabulary"
        )
