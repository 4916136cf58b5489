from random import Random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mofi_lightning.data.randomness import row_generator
from mofi_lightning.data.transforms import Augmentation, RandAugment
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError

SIZE_32 = Preprocess(size=32, interpolation="bilinear")


@pytest.fixture(scope="module")
def image(rows):
    return decode(rows[0].image)


def test_the_same_row_and_pass_give_the_same_pixels_and_another_pass_others(image):
    augmentation = Augmentation(brightness=0.3, contrast=0.3, saturation=0.3)
    first, again, other = (
        augmentation(image, SIZE_32, row_generator(1, pass_number, "key")) for pass_number in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rand_augment", [None, RandAugment(3, 15)])
def test_global_generators_are_neither_read_nor_advanced(image, rand_augment):
    augmentation = Augmentation(brightness=0.3, rand_augment=rand_augment)
    state = torch.get_rng_state()
    first = [augmentation(image, SIZE_32, Random(n)) for n in range(10)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    again = [augmentation(image, SIZE_32, Random(n)) for n in range(10)]
    assert torch.equal(torch.stack(again), torch.stack(first))


@pytest.mark.parametrize(("resize_on", "dtype"), [("uint8", torch.uint8), ("float", torch.float32)])
def test_size_and_number_type_follow_the_encoder(image, resize_on, dtype):
    preprocess = Preprocess(size=24, interpolation="bicubic", resize_on=resize_on)
    out = Augmentation()(image, preprocess, Random(0))
    assert out.shape == (3, 24, 24)
    assert out.dtype == dtype
    if dtype.is_floating_point:  # bicubic weights overshoot, as in Preprocess
        assert out.min() > -0.2 and out.max() < 1.2


def test_a_crop_is_resized_as_torchvision_does(image):
    augmentation = Augmentation(flip=0)
    top, left, height, width = augmentation.crop_box(64, 64, Random(5))
    expected = functional.resized_crop(image, top, left, height, width, [32, 32], antialias=True)
    assert torch.equal(augmentation(image, SIZE_32, Random(5)), expected)


def test_flip_and_jitter_are_torchvision_s(image):
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), flip=1, brightness=0.5)
    generator = Random(2)
    whole.crop_box(64, 64, generator)
    generator.random()
    factor = generator.uniform(0.5, 1.5)
    small = functional.resize(image, [32, 32], antialias=True)
    expected = functional.adjust_brightness(functional.horizontal_flip(small), factor)
    assert torch.equal(whole(image, SIZE_32, Random(2)), expected)


def seed_of_operations(whole: Augmentation, image, generator: Random) -> int:
    """What the operations are seeded with: the row's next draw after those of crop and flip."""
    whole.crop_box(*image.shape[-2:], generator)
    generator.random()
    return generator.getrandbits(63)


@pytest.mark.parametrize(("num_ops", "magnitude"), [(1, 30), (2, 9), (4, 0)])
def test_rand_augment_is_torchvision_s_under_the_row_s_seed(image, num_ops, magnitude):
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), flip=1, rand_augment=RandAugment(num_ops, magnitude))
    flipped = functional.horizontal_flip(functional.resize(image, [32, 32], antialias=True))
    reference = v2.RandAugment(num_ops, magnitude)
    changed = 0
    for n in range(30):
        torch.manual_seed(seed_of_operations(whole, image, Random(n)))
        expected = reference(flipped)
        ours = whole(image, SIZE_32, Random(n))
        assert ours.dtype == torch.uint8 and torch.equal(ours, expected)
        changed += not torch.equal(ours, flipped)
    assert changed > (20 if magnitude else 5)


def test_rand_augment_on_float_is_that_on_uint8_within_two_levels(image):
    operation = RandAugment(1, 15)
    for n in range(60):  # each of the 14 operations comes several times
        on_float, expected = operation(image / 255, Random(n)), operation(image, Random(n))
        assert on_float.dtype == torch.float32
        assert (255 * on_float - expected).abs().max() < 2, n


def test_what_bicubic_weights_overshoot_is_cut_before_rand_augment(image):
    preprocess = Preprocess(size=32, interpolation="bicubic", resize_on="float")
    for n in range(20):
        out = Augmentation(rand_augment=RandAugment(2, 9))(image, preprocess, Random(n))
        assert out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1


def three_visits() -> list[torch.Tensor]:
    """Of one row, twice in one pass and once in the next."""
    image = torch.arange(3 * 40 * 50).mul(7).reshape(3, 40, 50).to(torch.uint8)
    augmentation = Augmentation(rand_augment=RandAugment(2, 9))
    return [augmentation(image, SIZE_32, row_generator(1, pass_number, "key")) for pass_number in (0, 0, 1)]


def test_rand_augment_depends_on_row_and_pass_only_in_any_process(pool):
    here, (there,) = three_visits(), pool(1, three_visits)
    assert all(map(torch.equal, here, there))
    assert torch.equal(here[0], here[1]) and not torch.equal(here[0], here[2])


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (300, 20)])
def test_crops_have_the_distribution_of_torchvision_s(shape):
    height, width = shape
    augmentation = Augmentation(scale=(0.2, 1.0))
    reference = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    canvas = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = [reference.make_params([canvas]) for _ in range(3000)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in theirs])
    generator = Random(0)
    ours = np.array([augmentation.crop_box(height, width, generator) for _ in range(3000)])
    assert ((ours[:, 0] + ours[:, 2] <= height) & (ours[:, 1] + ours[:, 3] <= width)).all()
    tolerance = 4 * theirs.std(0) / np.sqrt(3000) * np.sqrt(2) + 1e-9
    assert (abs(ours.mean(0) - theirs.mean(0)) <= tolerance).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": (0.9, 0.5)}, "scale"), ({"ratio": (0, 1)}, "ratio"), ({"flip": 2}, "flip")],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "message"), [((0, 9), "num_ops"), ((2, 31), r"magnitude.* 0\.\.30"), ((2, -1), "magnitude")]
)
def test_impossible_operations_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RandAugment(*options)
