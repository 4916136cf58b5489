import pytest
import torch
from torch import Tensor

from mofi_lightning.functional import repeat_groups, text_hash


def _padded(texts: list[list[int]], length: int, left: bool = False) -> tuple[Tensor, Tensor]:
    ids, mask = (torch.full((len(texts), length), fill) for fill in (9, 0))  # 9 is a token's id too
    for row, text in enumerate(texts):
        place = slice(length - len(text), length) if left else slice(0, len(text))
        ids[row, place] = torch.tensor(text, dtype=torch.int64)
        mask[row, place] = 1
    return ids, mask


TEXTS = [[1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 9], [1, 2, 9, 9], [], [0], [0, 0], [49_407, 2], [2, 49_407]]


def test_different_texts_have_different_hashes():
    assert text_hash(*_padded(TEXTS, 5)).unique().numel() == len(TEXTS)


@pytest.mark.parametrize("left", (False, True))
def test_a_texts_hash_does_not_depend_on_its_padding(left):
    assert torch.equal(text_hash(*_padded(TEXTS, 11, left)), text_hash(*_padded(TEXTS, 5)))


def test_all_64_bits_of_the_hash_are_used():
    ids = torch.arange(50_000)[:, None]
    hashes = text_hash(ids, torch.ones_like(ids))
    assert hashes.unique().numel() == 50_000
    share = torch.stack([(hashes >> bit) & 1 for bit in range(64)]).double().mean(1)
    assert (share - 0.5).abs().max() < 0.02


def _naive_groups(entity: list[int], text: list[int]) -> list[int]:
    """First position of each connected component, by walking the graph of rows."""
    groups = [-1] * len(entity)
    for start in range(len(entity)):
        if groups[start] >= 0:
            continue
        stack = [start]
        while stack:
            i = stack.pop()
            groups[i] = start
            stack += [
                j
                for j in range(len(entity))
                if groups[j] < 0 and ((entity[i] == entity[j] >= 0) or text[i] == text[j])
            ]
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_connected_components_of_same_entity_or_same_text(seed):
    generator = torch.Generator().manual_seed(seed)
    entity = torch.randint(-1, 40, (60,), generator=generator)
    text = torch.randint(-30, 30, (60,), generator=generator)  # hashes have any sign
    assert repeat_groups(entity, text).tolist() == _naive_groups(entity.tolist(), text.tolist())


def test_a_chain_of_shared_entities_and_texts_is_one_group_whatever_its_length():
    chain = torch.arange(200)
    assert repeat_groups(chain // 2, (chain + 1) // 2).unique().tolist() == [0]


def test_either_label_alone_decides_where_the_other_is_missing():
    entity, text = torch.tensor([4, -1, 4, -1]), torch.tensor([-1, 5, 6, -1])
    assert repeat_groups(entity).tolist() == [0, 1, 0, 3]
    assert repeat_groups(text=text).tolist() == [0, 1, 2, 0]
    assert repeat_groups() is None
