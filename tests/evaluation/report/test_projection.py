import random

import pytest
import torch
from threadpoolctl import threadpool_limits

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.projection import drawn_rows, project


def _set(keys: list[str], entities: list[str], domains: list[str] | None = None) -> EvaluationSet:
    return EvaluationSet("set", keys, [b""] * len(keys), entities, domains=domains)


def test_groups_that_lie_apart_lie_apart_on_the_plane():
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    embeddings = torch.cat([centre + 0.02 * torch.randn(12, 16) for centre in centres])
    points = project(embeddings, range(36)).points
    assert list(points) == list(range(36))
    plane = torch.tensor([points[row] for row in range(36)])
    assert float(plane.min()) >= 0 and float(plane.max()) <= 1
    distances = torch.cdist(plane, plane).fill_diagonal_(torch.inf)
    assert all(int(distances[row].argmin()) // 12 == row // 12 for row in range(36))


@pytest.mark.parametrize("rows", [0, 3, 9])
def test_few_images_have_no_map(rows):
    found = project(torch.randn(9, 4), range(rows))
    assert not found.points
    assert found.missing == f"{rows} images are too few for a map; it needs 10"


def test_equal_embeddings_have_no_map_and_one_dimension_is_enough():
    assert project(torch.ones(20, 4), range(20)).missing == "all embeddings are the same"
    line = project(torch.linspace(0, 1, 20)[:, None], range(20)).points
    assert len(line) == 20
    assert len(set(line.values())) == 20


def test_the_map_does_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    embeddings = torch.randn(100, 256)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(project(embeddings, range(100)))
    assert found[0] == found[1]


def test_many_images_are_drawn_evenly_whatever_their_order():
    # a large domain of many entities, a small one, and entities of very different sizes
    rows = [(f"a{n}", f"e{n % 100}", "large") for n in range(4000)]
    rows += [(f"b{n}", "single" if n < 200 else f"f{n % 10}", "middle") for n in range(900)]
    rows += [(f"c{n}", "g", "small") for n in range(50)]
    data = _set(*map(list, zip(*rows, strict=True)))
    drawn = drawn_rows(data, range(len(rows)))
    assert len(drawn) == 1500
    assert drawn == sorted(set(drawn))
    sizes = {domain: sum(rows[row][2] == domain for row in drawn) for domain in ("large", "middle", "small")}
    assert sizes == {"large": 725, "middle": 725, "small": 50}
    of_entity = [sum(rows[row][1] == f"e{n}" for row in drawn) for n in range(100)]
    assert set(of_entity) == {7, 8}

    shuffled = random.Random(0).sample(rows, len(rows))
    again = drawn_rows(_set(*map(list, zip(*shuffled, strict=True))), range(len(rows)))
    assert {shuffled[row][0] for row in again} == {rows[row][0] for row in drawn}


def test_few_images_are_all_drawn_but_for_those_without_an_embedding():
    assert drawn_rows(_set(["a", "b", "c"], ["x", "y", "z"]), [0, 2]) == [0, 2]
