from collections import Counter
from pathlib import Path

import networkx as nx
import pytest
import torch

from mofi_lightning.evaluation.datasets.hierarchy import read_hierarchy
from mofi_lightning.evaluation.measures.label_hierarchy import LabelHierarchy
from mofi_lightning.types import InputError

# what ImageNet's labels up to six hops from the tabby cat belong to in WordNet 3.0
ANIMALS = Path(__file__).parents[1] / "data" / "wordnet_animals"
TABBY = "n02123045"


@pytest.fixture(scope="module")
def animals() -> dict[str, list[str]]:
    return read_hierarchy(ANIMALS)


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return (ANIMALS / "imagenet_labels.txt").read_text().split()


def naive_correct_set(parents: dict[str, list[str]], labels: list[str], label: str, k: int) -> set[str]:
    """The paper's loop: grow the radius until there are k valid labels within it."""
    graph = nx.Graph((child, parent) for child, above in parents.items() for parent in above)
    hops = nx.single_source_shortest_path_length(graph, label)
    found: set[str] = set()
    radius = 0
    while len(found) < k and radius <= max(hops.values()):
        found |= {node for node, distance in hops.items() if distance == radius and node in labels}
        radius += 1
    return found


def test_distances_from_the_tabby_cat_are_those_published(animals, labels):
    # "Deep hierarchical model for hierarchical selective classification and zero shot learning" (OpenReview),
    # Table 1, over all 1,000 labels of ImageNet
    found = LabelHierarchy(animals, labels).nearest(labels.index(TABBY), 137)
    assert Counter(found.hops) == {0: 1, 2: 4, 4: 9, 5: 29, 6: 94}


@pytest.mark.parametrize("step", [1, 3, 10])
def test_correct_sets_equal_the_papers_loop_on_wordnet(animals, labels, step):
    chosen = labels[::step]
    hierarchy = LabelHierarchy(animals, chosen)
    for label in chosen[::5]:
        # descending, too: what is known of more labels is used for fewer
        for k in (1, 2, 20, 5, 10, 2, 500):
            assert hierarchy.correct_set(label, k) == naive_correct_set(animals, chosen, label, k)


@pytest.mark.parametrize("seed", range(20))
def test_correct_sets_equal_the_papers_loop_on_random_graphs(seed):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(60, (70, 2), generator=generator).tolist()
    parents: dict[str, list[str]] = {}
    for child, parent in edges:
        parents.setdefault(str(child), []).append(str(parent))
    nodes = sorted({str(node) for edge in edges for node in edge})
    labels = [nodes[i] for i in torch.randperm(len(nodes), generator=generator)[:15].tolist()]
    hierarchy = LabelHierarchy(parents, labels)
    for label in labels:
        for k in (1, 3, 8):
            assert hierarchy.correct_set(label, k) == naive_correct_set(parents, labels, label, k)


def test_rings_are_taken_whole_and_cycles_do_no_harm():
    parents = {"a": ["x"], "b": ["x"], "c": ["x"], "d": ["y"], "x": ["y"], "y": ["x", "y"]}
    hierarchy = LabelHierarchy(parents, ["a", "b", "c", "d"])
    assert hierarchy.correct_set("a", 1) == {"a"}
    assert hierarchy.correct_set("a", 2) == {"a", "b", "c"}
    assert hierarchy.correct_set("a", 4) == {"a", "b", "c", "d"}


def test_a_label_may_be_a_category_of_another():
    hierarchy = LabelHierarchy({"dog": ["animal"], "animal": ["thing"]}, ["thing", "dog", "animal"])
    assert hierarchy.correct_set("dog", 2) == {"dog", "animal"}


def test_a_set_ends_where_no_more_is_connected():
    hierarchy = LabelHierarchy({"a": ["x"], "b": ["x"], "c": []}, ["a", "b", "c"])
    assert hierarchy.correct_set("a", 3) == {"a", "b"}
    assert hierarchy.correct_set("c", 3) == {"c"}


def test_a_class_outside_the_hierarchy_is_named():
    with pytest.raises(InputError, match=r"2 of 3 classes are not in the hierarchy, the first 'wolf'"):
        LabelHierarchy({"dog": ["animal"]}, ["dog", "wolf", "cat"])


def test_a_label_that_stands_twice_is_named():
    with pytest.raises(InputError, match="'dog' stands twice"):
        LabelHierarchy({"dog": ["animal"]}, ["dog", "animal", "dog"])
