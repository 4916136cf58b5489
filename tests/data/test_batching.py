import pytest
import torch

from mofi_lightning.data.batching import BatchBuilder
from mofi_lightning.data.randomness import row_generator
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.encoders.decoding import UndecodableImage, decode
from mofi_lightning.encoders.preprocess import Preprocess

PREPROCESS = Preprocess(size=24, interpolation="bilinear")


def examples(builder, rows):
    return [builder.example(row, row_generator(1, 0, row.key)) for row in rows]


def test_a_batch_stacks_images_texts_entities_and_keys_of_the_same_rows(rows, vocabulary, tokenizer):
    builder = BatchBuilder(PREPROCESS, Augmentation(), TextSampling(), vocabulary, tokenizer, 16)
    made = examples(builder, rows[:8])
    batch = builder.batch(made, torch.stack([example.image for example in made]))
    assert batch["key"] == [row.key for row in rows[:8]]
    assert batch["image"].shape == (8, 3, 24, 24) and batch["image"].dtype == torch.uint8
    assert batch["entity"].dtype == torch.int64
    for n, row in enumerate(rows[:8]):
        assert int(batch["entity"][n]) in (row.entities or (-1,))
    texts = tokenizer([example.text for example in made], 16)
    assert torch.equal(batch["text"].input_ids, texts.input_ids)
    assert batch["text"].input_ids.shape[1] % 8 == 0


def test_without_augmentation_the_image_is_exactly_the_encoder_s(rows, tokenizer):
    builder = BatchBuilder(PREPROCESS, None, TextSampling(), None, tokenizer, 16)
    (example,) = examples(builder, rows[:1])
    assert torch.equal(example.image, PREPROCESS(decode(rows[0].image)))


def test_fields_that_nothing_carries_are_left_out(rows):
    builder = BatchBuilder(PREPROCESS, None, TextSampling(), None, None, 0)
    made = examples(builder, rows[:2])
    assert set(builder.batch(made, torch.stack([example.image for example in made]))) == {"image", "key"}


def test_a_damaged_image_is_reported(rows):
    builder = BatchBuilder(PREPROCESS, None, TextSampling(), None, None, 0)
    with pytest.raises(UndecodableImage):
        examples(builder, [rows[0]._replace(image=rows[0].image[:200])])
