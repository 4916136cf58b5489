import random

import torch

from mofi_lightning.data.datamodule import I2EDataModule


def test_images_that_are_held_are_never_overwritten_and_equal_those_made_in_process(i2e, plain, make_data):
    sources = {"i2e": (i2e, 8), "plain": (plain, 4)}
    expected = list(make_data(sources, max_steps=40).train_dataloader())
    data: I2EDataModule = make_data(sources, max_steps=40, num_workers=2)
    generator = random.Random(1)
    held: dict[int, torch.Tensor] = {}
    places = set()
    for step, batch in enumerate(data.train_dataloader()):
        assert torch.equal(batch["image"], expected[step]["image"])
        places.add(batch["image"].data_ptr())
        # a view keeps the memory as the tensor itself does
        if generator.random() < 0.3:
            held[step] = generator.choice(
                [batch["image"], batch["image"][1:3], batch["image"].permute(0, 2, 3, 1)]
            )
        for old in list(held):
            image = expected[old]["image"]
            views = {4: image, 2: image[1:3]}
            view = image.permute(0, 2, 3, 1) if held[old].shape[-1] == 3 else views.get(len(held[old]), image)
            assert torch.equal(held[old], view), f"step {old} was overwritten by step {step}"
            if generator.random() < 0.2:
                del held[old]


def test_a_consumer_that_keeps_no_batch_gets_the_same_memory_again(plain, make_data):
    data = make_data({"plain": (plain, 8)}, max_steps=30, num_workers=1)
    loader = data.train_dataloader()
    slots_used = 0
    for batch in loader:
        slots_used += int(loader.mixture.slots._taken.sum()) > 0
        del batch
    assert slots_used == 30
    assert int(loader.mixture.slots._taken.sum()) == 0
