import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.data.s3 import s3_server, upload

from mofi_lightning.data.datamodule import DataSource, I2EDataModule
from mofi_lightning.data.storage import Cache
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError


def test_fields_and_vocabulary_are_those_of_the_sources(i2e, plain, make_data, vocabulary):
    data = make_data({"i2e": (i2e, 8), "pairs": (plain, 8)})
    assert data.fields == {"i2e": {"image", "text", "entity"}, "pairs": {"image", "text"}}
    assert data.vocabulary == vocabulary
    assert make_data({"pairs": (plain, 8)}).vocabulary is None


def test_sources_that_number_different_entities_are_refused(i2e, rows, tmp_path, make_data, vocabulary):
    reverse = [
        list(c)[::-1] for c in (vocabulary.ids, vocabulary.names, vocabulary.descriptions, vocabulary.counts)
    ]
    write_dataset(rows[:5], tmp_path / "other", EntityVocabulary.from_columns(*reverse))
    data = make_data({"first": (i2e, 8), "second": (tmp_path / "other", 8)})
    with pytest.raises(InputError, match=r"source 'first'.*source 'second'.*different entities"):
        data.vocabulary  # noqa: B018 (a property)
    data = make_data({"first": (i2e, 8)}, validation=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"training .* and validation .*other"):
        data.val_dataloader()


def test_missing_inputs_are_named(i2e, tmp_path, make_data):
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        make_data({"x": (tmp_path / "nowhere", 8)}).fields  # noqa: B018 (a property)
    with pytest.raises(InputError, match=r"no validation at .*held_out\.parquet"):
        make_data({"x": (i2e, 8)}, validation=str(tmp_path / "held_out.parquet")).val_dataloader()
    with pytest.raises(InputError, match=r"data\.sources is empty"):
        I2EDataModule({})
    with pytest.raises(InputError, match=r"trainer\.max_steps"):
        make_data({"x": (i2e, 8)}, max_steps=-1).train_dataloader()


def test_validation_reads_held_out_rows_in_order_without_augmentation(i2e, emoji_slice, make_data, tokenizer):
    path = emoji_slice / "validation.parquet"
    loader = make_data({"i2e": (i2e, 8)}, validation=str(path)).val_dataloader()
    pairs = pq.read_table(path).to_pylist()
    batches = list(loader)
    assert [len(batch["key"]) for batch in batches] == [7, 7] and len(loader) == 2
    assert [key for batch in batches for key in batch["key"]] == [pair["key"] for pair in pairs]
    preprocess = Preprocess(size=24, interpolation="bilinear")
    expected = torch.stack([preprocess(decode(pair["image"])) for pair in pairs[:7]])
    assert torch.equal(batches[0]["image"], expected)
    assert torch.equal(
        batches[0]["text"].input_ids, tokenizer([pair["text"] for pair in pairs[:7]], 32).input_ids
    )
    assert (batches[0]["entity"] == -1).all()
    assert [batch["key"] for batch in loader] == [batch["key"] for batch in batches], "it can be read again"


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_validates_the_same_number_of_batches_of_disjoint_rows(
    i2e, emoji_slice, make_data, world_size
):
    path = str(emoji_slice / "validation.parquet")
    ranks = [
        list(make_data({"i2e": (i2e, 8)}, rank=r, world_size=world_size, validation=path).val_dataloader())
        for r in range(world_size)
    ]
    assert len({tuple(len(batch["key"]) for batch in rank) for rank in ranks}) == 1
    keys = [key for rank in ranks for batch in rank for key in batch["key"]]
    assert len(keys) == len(set(keys)) > 14 - 2 * world_size


def test_a_data_set_can_be_held_out_too_and_no_validation_is_no_loader(i2e, plain, make_data):
    data = make_data({"i2e": (i2e, 20)}, validation=str(plain), num_workers=1)
    assert sum(len(batch["key"]) for batch in data.val_dataloader()) == 48  # 3 batches of 16
    assert make_data({"i2e": (i2e, 20)}).val_dataloader() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_sets_in_object_storage_give_the_batches_of_local_ones(
    i2e, plain, make_data, tmp_path, num_workers
):
    local = make_data({"i2e": (i2e, 34)}, 6, validation=str(plain))
    with s3_server() as server:
        for name, folder in (("i2e", i2e), ("plain", plain)):
            upload(folder, f"s3://sets/{num_workers}/{name}")
        uris = [f"s3://sets/{num_workers}/{name}" for name in ("i2e", "plain")]
        options = {"validation": uris[1], "cache": Cache(str(tmp_path)), "num_workers": num_workers}
        data = make_data({"i2e": (uris[0], 34)}, 6, **options)
        for remote, expected in (
            (data.train_dataloader(), local.train_dataloader()),
            (data.val_dataloader(), local.val_dataloader()),
        ):
            for batch, other in zip(remote, expected, strict=True):
                assert batch["key"] == other["key"] and torch.equal(batch["image"], other["image"])
        assert data.bad_rows == {}
        chunks = {key: n for key, n in server.downloads.items() if key.endswith(".bin")}
        assert len(chunks) == 4 and set(chunks.values()) == {1}, "each chunk is fetched once"
        small = make_data({"i2e": (uris[0], 34)}, 6, cache=Cache(str(tmp_path), 0.0003))
        with pytest.warns(UserWarning, match=r"a cache of 0.0003 GB .* raise data.cache.gigabytes"):
            small.train_dataloader()
    loader = make_data({"i2e": (i2e, 34)}, 6).train_dataloader()
    loader.load_state_dict(data.train_dataloader().state_dict())


class Recorder(LightningModule):
    """Keeps the keys it is given; stops at a step as a killed run would."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.keys: list[list[str]] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_after:
            raise KeyboardInterrupt
        self.keys.append(batch["key"])
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_resumes_in_the_middle_of_a_pass_without_losing_or_repeating_a_row(
    i2e, emoji_slice, tokenizer, tmp_path, num_workers
):
    def run(module: Recorder, **options: object) -> Recorder:
        data = I2EDataModule(
            {"i2e": DataSource(str(i2e), 32)},
            str(emoji_slice / "validation.parquet"),
            num_workers=num_workers,
        )
        data.use(Preprocess(size=8), tokenizer, 16)
        trainer = Trainer(
            max_steps=12,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            val_check_interval=4,
            use_distributed_sampler=False,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")],
        )
        try:
            trainer.fit(module, data, **options)
        except (KeyboardInterrupt, SystemExit):
            assert module.stop_after is not None
        return module

    whole = run(Recorder())
    assert len(whole.keys) == 12
    for checkpoint in tmp_path.glob("*.ckpt"):
        checkpoint.unlink()
    stopped = run(Recorder(stop_after=8))
    assert stopped.keys == whole.keys[:8]
    resumed = run(Recorder(), ckpt_path=str(tmp_path / "step=6.ckpt"), weights_only=True)
    assert resumed.keys == whole.keys[6:]
