import io
import weakref
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.objectives.parity import DIM, assert_same, spec, train
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

from mofi_lightning.distributed import sample_classes, world_size
from mofi_lightning.objectives import EntitySoftmax, table_start
from mofi_lightning.testing import check_objective
from mofi_lightning.testing.largest_tensor import TensorWatch
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveSpec

ENTITY = [3, 6, -1, 3, -1, 3, -1, 0, -1, -1, -1, -1]  # the last third of the rows has no label


def _embeddings(rows: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    return Embeddings(image=F.normalize(torch.randn(rows, DIM, generator=generator), dim=1).requires_grad_())


def _batch(*entity: int) -> Batch:
    return Batch(entity=torch.tensor(entity))


def _naive(image: Tensor, table: Tensor, classes: list[int], entity: list[int], form: str) -> Tensor:
    losses = []
    for x, y in zip(image, entity, strict=True):
        if y < 0:
            continue
        cosines = [torch.stack([x @ row / row.norm() for row in table[c]]).max() for c in classes]
        logits = [32.0 * cos for cos in cosines]
        cos = cosines[classes.index(y)]
        logits[classes.index(y)] = 32.0 * (cos - 0.15 if form == "cosface" else (cos.acos() + 0.15).cos())
        losses.append(torch.stack(logits).logsumexp(0) - logits[classes.index(y)])
    return torch.stack(losses).mean()


FORMS = (("cosface", 1), ("arcface", 1), ("arcface", 3))


@pytest.mark.parametrize(("form", "centers"), FORMS)
def test_loss_gradient_and_update_equal_a_loop_over_rows_and_classes(form, centers):
    objective = EntitySoftmax(spec(5), form=form, sub_centers=centers, learning_rate=0.1)
    embeddings, entity = _embeddings(4), [1, -1, 4, 1]
    start = objective.table.clone()
    table = start.clone().requires_grad_()
    expected = _naive(embeddings.image, table, list(range(5)), entity, form)
    gradient, table_gradient = torch.autograd.grad(expected, (embeddings.image, table))
    output = objective(embeddings, _batch(*entity))
    output.loss.backward()
    objective.after_optimizer_step(lr_factor=0.5)
    torch.testing.assert_close(output.loss, expected.detach())
    bound = 1e-5 * gradient.abs().max().item()  # fp32, and the slope of the angle at the target is steep
    torch.testing.assert_close(embeddings.image.grad, gradient, rtol=0, atol=bound)
    assert embeddings.image.grad[1].eq(0).all()
    moment = table_gradient.pow(2).mean(2)
    torch.testing.assert_close(objective.second_moment, moment)
    change = 0.1 * 0.5 * table_gradient / (moment.sqrt() + 1e-10)[..., None]
    torch.testing.assert_close(objective.table, start - change, rtol=1e-4, atol=1e-5)


def test_sampled_softmax_counts_only_the_sampled_classes_and_moves_only_them():
    objective = EntitySoftmax(spec(50), num_sampled=6)
    embeddings, entity = _embeddings(3), [7, -1, 31]
    start = objective.table.clone()
    output = objective(embeddings, _batch(*entity))
    output.loss.backward()
    objective.after_optimizer_step(1.0)
    moved = (objective.table != start).flatten(1).any(1).nonzero().flatten().tolist()
    assert len(moved) == 6 and {7, 31} <= set(moved)
    torch.testing.assert_close(output.loss, _naive(embeddings.image, start, moved, entity, "cosface"))


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("num_sampled", (None, 5))
@pytest.mark.parametrize(("form", "centers"), FORMS)
def test_training_on_ranks_equals_training_on_one_process(pool, world, num_sampled, form, centers):
    make = partial(EntitySoftmax, num_sampled=num_sampled, form=form, sub_centers=centers)
    num_entities = 7 if world == 3 else 10  # 3 + 3 + 1 entities, 5 + 5
    ranks = pool(world, train, make, num_entities, ENTITY)
    assert_same(ranks, train(make, num_entities, ENTITY))


def test_sampling_all_entities_is_the_exact_softmax(monkeypatch):
    """Through the sampler, whose order differs, though the objective takes the short way for all entities."""
    exact = train(EntitySoftmax, 7, ENTITY)

    class Sampling(EntitySoftmax):
        def _classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
            return sample_classes(self.seed, 0, labels, self.num_classes, self.num_classes)

    sampled = train(Sampling, 7, ENTITY)
    torch.testing.assert_close(sampled, exact)
    assert_same([train(partial(EntitySoftmax, num_sampled=7), 7, ENTITY)], exact)


def test_a_rank_without_any_entity_takes_part(pool):
    entity = [3, 1, -1, 3, -1, -1]
    assert_same(pool(3, train, EntitySoftmax, 4, entity), train(EntitySoftmax, 4, entity))  # 2 + 2 + 0 rows


@pytest.mark.parametrize("world", (1, 2))
def test_without_labelled_rows_the_loss_is_zero_and_nothing_moves(pool, world):
    start = EntitySoftmax(spec(7)).table
    for trace in pool(world, train, EntitySoftmax, 7, [-1] * 4):
        assert trace.losses.eq(0).all() and trace.logs["accuracy"] == 0
        torch.testing.assert_close(trace.objective["table"].float(), start)


def test_accuracy_is_read_without_the_margin():
    objective = EntitySoftmax(spec(2), margin=0.9)
    objective.table = torch.tensor([[[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]])
    image = F.normalize(torch.tensor([[1.0, 0.9, 0, 0], [1.0, 0.9, 0, 0], [1.0, 0.9, 0, 0]]), dim=1)
    output = objective(Embeddings(image=image), _batch(0, 1, -1))
    assert output.logs["accuracy"] == 0.5


@pytest.mark.parametrize("mode", (torch.inference_mode, torch.enable_grad))
def test_validation_updates_and_counts_nothing_and_repeats_itself(mode):
    objective = EntitySoftmax(spec(50), num_sampled=6).eval()
    start = objective.table.clone()
    with mode():
        losses = [objective(_embeddings(3), _batch(7, -1, 31)).loss for _ in range(2)]
    if losses[1].requires_grad:
        losses[1].backward()
    objective.after_optimizer_step(1.0)
    assert losses[0] == losses[1]
    assert torch.equal(objective.table, start) and objective.draws == 0


def test_every_validation_samples_the_same_classes():
    objective = EntitySoftmax(spec(50), num_sampled=6)

    def validate() -> Tensor:
        with torch.no_grad():
            return objective.eval()(_embeddings(3), _batch(7, -1, 31)).loss

    before = validate()
    objective.train()(_embeddings(3), _batch(7, -1, 31)).loss.backward()
    objective.after_optimizer_step(lr_factor=0.0)
    assert objective.draws == 1 and validate() == before


def test_validation_between_forward_and_update_does_not_disturb_the_step():
    objective = EntitySoftmax(spec(50), num_sampled=6)
    objective(_embeddings(3), _batch(7, -1, 31)).loss.backward()
    with torch.no_grad():
        objective.eval()(_embeddings(2), _batch(0, 1))
    objective.train().after_optimizer_step(1.0)
    assert objective.second_moment[[7, 31]].gt(0).all() and objective.draws == 1


def test_an_update_happens_once_a_step():
    objective = EntitySoftmax(spec(5))
    objective(_embeddings(2), _batch(0, 1)).loss.backward()
    objective.after_optimizer_step(1.0)
    once = objective.table.clone()
    objective.after_optimizer_step(1.0)
    assert torch.equal(objective.table, once)


@pytest.mark.parametrize("num_sampled", (None, 6))
def test_nothing_of_a_skipped_step_is_left_but_its_draw(num_sampled):
    skipping, other = (EntitySoftmax(spec(50), num_sampled=num_sampled) for _ in range(2))
    skipping(_embeddings(3), _batch(7, -1, 31)).loss.mul(torch.nan).backward()  # and no update
    other.draws += num_sampled is not None
    for objective in (skipping, other):
        objective(_embeddings(2), _batch(0, 1)).loss.backward()
        objective.after_optimizer_step(1.0)
    for name, value in other.state_dict().items():
        assert torch.equal(skipping.state_dict()[name], value), name


def test_the_gradient_of_a_skipped_step_is_freed_before_the_next_gather():
    objective = EntitySoftmax(spec(50))
    objective(_embeddings(3), _batch(7, -1, 31)).loss.backward()
    gradient = weakref.ref(objective._pending[1].grad.untyped_storage())
    assert gradient() is not None

    class Watched(dict):
        def __getitem__(self, name: str) -> Tensor:
            assert gradient() is None
            return super().__getitem__(name)

    objective(_embeddings(2), Watched(entity=torch.tensor([0, 1])))


@pytest.mark.parametrize(("num_sampled", "centers"), ((None, 1), (6, 1), (6, 2)))
def test_coverage_is_the_share_of_entities_whose_rows_were_updated(num_sampled, centers):
    make = partial(EntitySoftmax, spec(50), scale=4.0, num_sampled=num_sampled, sub_centers=centers)
    objective, touched = make(), set()
    for step in range(4):
        before = objective.table.clone()
        output = objective(_embeddings(3), _batch(7 + step, -1, 31))
        assert output.logs["coverage"] == pytest.approx(len(touched) / 50)
        assert output.logs["classes"] == pytest.approx((num_sampled or 50) / 50)
        output.loss.backward()
        objective.after_optimizer_step(1.0)
        touched |= set((objective.table != before).flatten(1).any(1).nonzero().flatten().tolist())
    resumed = make()
    resumed.load_state_dict(objective.state_dict())
    coverage = resumed(_embeddings(3), _batch(7, -1, 31)).logs["coverage"]
    assert coverage == pytest.approx(len(touched) / 50) and len(touched) > 6


def _coverage(num_sampled: int) -> list[tuple[float, float]]:
    """Of this rank, before and after its state went through a checkpoint."""
    torch.manual_seed(0)
    objective = EntitySoftmax(spec(50), num_sampled=num_sampled)
    objective.shard(init_device_mesh("cpu", (world_size(),)))
    for _ in range(3):
        objective(_embeddings(2), _batch(7, 31)).loss.backward()
        objective.after_optimizer_step(1.0)
    found = []
    for _ in range(2):
        logs = objective(_embeddings(2), _batch(7, 31)).logs
        found.append((logs["coverage"].item(), logs["classes"].item()))
        objective.load_state_dict(objective.state_dict())
    return found


def test_the_mean_of_the_ranks_coverages_is_that_of_the_table(pool):
    one = pool(1, _coverage, 7)[0]
    assert one[0] == one[1] and 7 / 50 < one[0][0] < 1
    ranks = torch.tensor(pool(3, _coverage, 7))
    assert len(ranks[:, 0, 0].unique()) > 1  # the ranks' own shares do differ
    torch.testing.assert_close(ranks.mean(0), torch.tensor(one))


def _vectors(folder: Path, ids: list[str], vectors: Tensor) -> str:
    file = folder / "vectors.parquet"
    pq.write_table(pa.table({"id": ids, "vector": vectors.tolist()}), file, row_group_size=3)
    return str(file)


def _table(file: str, batch_rows: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_start, "_BATCH_ROWS", batch_rows)
        return EntitySoftmax(spec(7), label_vectors=file).table


@pytest.mark.parametrize("world", (1, 3))
def test_rows_start_from_the_unit_vectors_of_their_entities(pool, world, tmp_path):
    order = [8, 2, 0, 6, 5, 1, 4, 3, 7]  # two of them are no entities of the data
    vectors = torch.randn(9, DIM, generator=torch.Generator().manual_seed(1))
    file = _vectors(tmp_path, [f"E{i}" for i in order], vectors[order])
    expected = F.normalize(vectors[:7], dim=1)[:, None]
    torch.testing.assert_close(torch.cat(pool(world, _table, file, 2)), expected)


def test_several_centres_start_near_their_vector_and_separate(tmp_path):
    vectors = F.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    file = _vectors(tmp_path, [f"E{i}" for i in range(5)], vectors)
    objective = EntitySoftmax(spec(5), sub_centers=2, label_vectors=file)
    cosine = F.cosine_similarity(objective.table, vectors[:, None], dim=2)
    assert cosine.gt(0.9).all() and not torch.equal(objective.table[:, 0], objective.table[:, 1])
    for _ in range(20):
        objective(_embeddings(6), _batch(0, 1, 2, 0, 1, 2)).loss.backward()
        objective.after_optimizer_step(1.0)
    assert F.cosine_similarity(objective.table[:3, 0], objective.table[:3, 1]).lt(0.9).any()


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    (
        (
            "E0 E1 E2",
            torch.ones(3, 8),
            "are 8 wide, rows of the entity table 4; make them with the text tower",
        ),
        ("E0 E1 E2 E1", torch.ones(4, DIM), "name an entity twice"),
        ("E0 E2 E9", torch.ones(3, DIM), "lack 1 of 3 entities, the first 'E1'"),
        ("E0 E1 E2", torch.tensor([[1.0] * DIM, [0.0] * DIM, [1.0] * DIM]), "entity 'E1' is zero or not"),
        (
            "E0 E1 E2",
            torch.tensor([[1.0] * DIM, [1.0] * DIM, [torch.inf] * DIM]),
            "entity 'E2' is zero or not",
        ),
    ),
)
def test_vectors_that_do_not_fit_the_table_are_refused(ids, rows, message, tmp_path):
    file = _vectors(tmp_path, ids.split(), rows)
    with pytest.raises(InputError, match=message):
        EntitySoftmax(spec(3), label_vectors=file)


def test_a_file_of_vectors_that_is_not_there_or_damaged_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file of label vectors at .*; make one with `mofi vectors`"):
        EntitySoftmax(spec(3), label_vectors=str(tmp_path / "nothing.parquet"))
    file = Path(_vectors(tmp_path, ["E0", "E1", "E2"], torch.ones(3, DIM)))
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)  # the pages; the footer stays whole
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged"):
        EntitySoftmax(spec(3), label_vectors=str(file))


def test_nothing_of_the_table_is_a_parameter():
    assert list(EntitySoftmax(spec(5)).parameters()) == []


def test_a_resumed_run_draws_and_moves_as_if_it_had_not_stopped():
    def step(objective: EntitySoftmax) -> None:
        objective(_embeddings(3), _batch(7, -1, 31)).loss.backward()
        objective.after_optimizer_step(1.0)

    straight = EntitySoftmax(spec(50), num_sampled=6)
    step(straight)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    step(straight)
    file.seek(0)
    resumed = EntitySoftmax(spec(50), num_sampled=6)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    step(resumed)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def _initial(num_entities: int, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_start, "_BLOCK", block)
        objective = EntitySoftmax(spec(num_entities))
    before = objective.table
    mesh = init_device_mesh("cpu", (world_size(),))
    objective.shard(mesh)
    full = objective.table.full_tensor()
    torchs = distribute_tensor(full, mesh, [Shard(0)]).to_local()
    return before, full, objective.table.to_local(), torchs


@pytest.mark.parametrize("world", (2, 3))
def test_the_table_starts_equal_on_any_number_of_ranks_and_none_makes_more_than_its_rows(
    pool, world, monkeypatch
):
    monkeypatch.setattr(table_start, "_BLOCK", 4)
    whole = EntitySoftmax(spec(10)).table
    for before, full, local, torchs in pool(world, _initial, 10, 4):
        assert torch.equal(full, whole)
        assert torch.equal(local, torchs) and torch.equal(before, local)


def test_the_tables_start_depends_on_the_seed_and_has_about_unit_rows():
    vocabulary = spec(300).vocabulary
    tables = [EntitySoftmax(ObjectiveSpec(64, 64, vocabulary), seed=seed).table for seed in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert abs(tables[0].norm(dim=2).mean() - 1) < 0.02
    assert EntitySoftmax(ObjectiveSpec(64, 64, vocabulary), sub_centers=2).table.shape == (300, 2, 64)


def test_a_step_makes_no_tensor_that_grows_with_the_entities():
    objective = EntitySoftmax(spec(50_000), num_sampled=100)
    embeddings = _embeddings(8)
    objective(embeddings, _batch(*range(8)))  # the first one counts the rows that were updated before
    with TensorWatch(rows=8) as watch:
        objective(embeddings, _batch(*range(8))).loss.backward()
        objective.after_optimizer_step(1.0)
    assert watch.largest.nbytes < 50_000


def test_the_table_and_its_gradient_are_the_largest_of_an_exact_step():
    objective = EntitySoftmax(spec(50_000))
    embeddings = _embeddings(64)
    with TensorWatch(rows=64) as watch:
        objective(embeddings, _batch(*range(64))).loss.backward()
        objective.after_optimizer_step(1.0)
    assert watch.largest.nbytes <= 2**22  # a chunk of logits; all of them are three times as large


def _forward_unsharded() -> str:
    try:
        EntitySoftmax(spec(7))(_embeddings(2), _batch(0, 1))
    except RuntimeError as error:
        return str(error)
    return ""


def test_forgetting_to_shard_on_several_ranks_is_an_error(pool):
    assert all("shard(mesh)" in message for message in pool(2, _forward_unsharded))


@pytest.mark.parametrize("other", ({"num_entities": 7}, {"sub_centers": 2}, {"width": 8}), ids=str)
def test_a_checkpoint_of_another_table_is_refused_with_both_shapes(other):
    def make(num_entities: int = 5, width: int = 4, **options: int) -> EntitySoftmax:
        return EntitySoftmax(ObjectiveSpec(width, width, spec(num_entities).vocabulary), **options)

    shapes = r"table.*\[5, 1, 4\].*\[(7, 1, 4|5, 2, 4|5, 1, 8)\]"
    with pytest.raises(RuntimeError, match=shapes):
        make(**other).load_state_dict(make().state_dict())


@pytest.mark.parametrize("vocabulary", (None, spec(0).vocabulary), ids=["none", "empty"])
def test_data_without_entities_is_refused(vocabulary):
    with pytest.raises(InputError, match="EntitySoftmax needs entities"):
        EntitySoftmax(ObjectiveSpec(4, 4, vocabulary))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"num_sampled": 0}, "num_sampled is 0"),
        ({"sub_centers": 0}, "sub_centers is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": 28.6, "form": "arcface"}, "margin is 28.6.*radians"),
        ({"form": "sphereface"}, "form is 'sphereface'; there are cosface and arcface"),
    ),
    ids=str,
)
def test_numbers_without_a_meaning_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        EntitySoftmax(spec(5), **options)


@pytest.mark.parametrize(
    "options",
    ({}, {"num_sampled": 8}, {"form": "arcface", "sub_centers": 2, "margin": 0.5}),
    ids=str,
)
def test_the_kit_for_authors_finds_nothing(options):
    check_objective(partial(EntitySoftmax, **options))
