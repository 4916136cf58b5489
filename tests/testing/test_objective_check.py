"""The kit finds each fault, names it, and finds none in what the library ships."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.testing import broken_objectives as broken

from mofi_lightning.objectives import CLIP, MOFI, DeViSE, EntitySoftmax, MultiTask
from mofi_lightning.testing import check_objective, shared_processes
from mofi_lightning.types import InputError, ObjectiveOutput

FAULTS = {
    broken.GatherWithoutGradient: r"two processes: .*gradient of embeddings.text is not.*distributed.gather",
    broken.NoGather: r"two processes: the mean of the ranks' losses is .*distributed.gather",
    broken.LocalMean: r"two processes: .*only where the labelled rows are spread unevenly.*global_mean",
    broken.UnscaledAllReduce: r"two processes: .*is not \(it is 0.5 times .*scale_gradient",
    broken.StartsWithTheRank: r"two processes: 'centre' of the state dict starts unlike on one process",
    broken.UpdateOfARank: r"two processes: loss and gradient are right, 'centre'.*not after the step",
    broken.MeanOfNothing: r"no labelled rows: the loss is nan.*global_mean",
    broken.NanGradientOfNothing: r"no labelled rows: the gradient of .*image, .*text, .* is not finite",
    broken.NanGradientOfAParameter: r"loss: the gradient of parameter 'offset' is not finite",
    broken.UnlabelledAsTheFirstEntity: r"no labelled rows: the loss is \d.*-1 counts as an entity.*mean",
    broken.UnlabelledAsTheLastEntity: r"no labelled rows: the loss is \d.*-1 counts as an entity",
    broken.ChangesTheBatch: r"loss: changes 'entity' of the batch in place",
    broken.RemovesFromTheBatch: r"loss: changes 'entity' of the batch in place",
    broken.ChangesTheImagesInValidation: r"validation: changes embeddings.image in place",
    broken.GathersInTrainingOnly: r"two processes: training is right, but in eval mode the mean",
    broken.ZeroDimensionalScale: r"contract: parameter 'scale' is 0-D.*\(1,\)",
    broken.GlobalRandomState: r"random numbers: draws from the global generator of torch.*counted_generator",
    broken.UndeclaredField: r"requires: uses 'entity' but does not require it \(KeyError",
    broken.UndeclaredVocabulary: r"requires: a spec with no more than `requires` names cannot build it: Attr",
    broken.ForeignLabelSpace: r"contract: label_space\(\) is no module of the objective",
    broken.UnknownField: r"contract: `requires` names 'texts', which is none of 'entity'",
    broken.Pixels: r"loss: uses batch\['image'\].*never pixels",
    broken.PairsNeighbours: r"order of the rows: the loss changes from",
    broken.UnusedParameter: r"gradients: none reaches parameter 'head.weight'",
    broken.DetachedText: r"gradients: none reaches embeddings.text",
    broken.StateOutsideTheStateDict: r"state dict: the loss is .*keep all .* in parameters and buffers",
    broken.CountsInValidation: r"validation: 'steps' of the state dict changes in eval mode",
    broken.OnlyFp32: r"fp64: raises RuntimeError.*broken_objectives.py.*the dtype of their inputs",
    broken.NotFinite: r"loss: the loss is inf",
    broken.NotAScalar: r"loss: the loss is a Tensor \(16,\); make it a 0-D tensor",
    broken.AttachedLog: r"loss: logs\['again'\] must be a detached tensor",
    broken.IgnoresTheMask: r"padding: the loss depends on text_tokens where text_tokens_mask is 0",
    broken.NoBf16Tokens: r"bf16: raises RuntimeError.*cast features and tokens",
}


def findings(factory) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        check_objective(factory)
    return [line for line in str(caught.value).splitlines() if line.startswith("- ")]


@pytest.fixture
def label_vectors(tmp_path: Path) -> str:
    path = tmp_path / "vectors.parquet"
    vectors = np.random.default_rng(0).normal(size=(12, 5)).tolist()
    pq.write_table(pa.table({"id": [f"S{i:06d}" for i in range(12)], "vector": vectors}), path)
    return str(path)


@pytest.mark.parametrize("objective", FAULTS, ids=lambda objective: objective.__name__)
def test_a_fault_is_found_and_named(objective):
    (found,) = findings(objective)
    assert re.match(f"- {FAULTS[objective]}", found), found


@pytest.mark.parametrize("objective", (broken.Right, broken.Tokens, broken.Classes))
def test_what_the_faults_were_put_into_has_none(objective):
    check_objective(objective)


def test_required_fields_that_the_loss_ignores_are_found():
    first, second = findings(partial(broken.RequiresWhatItIgnores))
    assert "requires 'entity', but the loss does not depend on it" in first and "'teacher'" in second


def test_what_fails_on_one_rank_only_is_reported_by_its_last_line():
    (found,) = findings(broken.FailsOnARank)
    assert found == "- two processes: rank 1 of 2: ValueError: no second rank, please"


@pytest.mark.parametrize(
    "factory",
    (
        CLIP,
        partial(CLIP, label_smoothing=0.1),
        partial(CLIP, repeats="mask"),
        partial(CLIP, repeats="negative"),
        EntitySoftmax,
        partial(EntitySoftmax, num_sampled=8),
        partial(EntitySoftmax, form="arcface", sub_centers=2),
        partial(MultiTask, objectives={"entity": EntitySoftmax, "clip": CLIP}),
        partial(MultiTask, objectives={"entity": EntitySoftmax, "spread": broken.Spread}),
        MOFI,
    ),
    ids=lambda factory: getattr(factory, "func", factory).__name__,
)
def test_the_objectives_of_the_library_pass(factory):
    check_objective(factory)


@pytest.mark.parametrize("options", ({}, {"competitors": "all"}, {"competitors": "batch"}, {"loss": "mse"}))
def test_devise_passes(label_vectors, options):
    check_objective(partial(DeViSE, label_vectors=label_vectors, **options))


def test_the_report_tells_the_largest_tensor_and_what_made_it():
    report = check_objective(broken.Right)
    assert (report.name, report.requires) == ("Right", {"text", "entity"})
    assert "two processes" in report.checks
    assert report.largest.shape == (2048, 2048) and report.largest.nbytes == 4 * 2048**2
    assert "largest tensor: 2048 x 2048, 16.8 MB, made by aten." in str(report)
    assert "(broken_objectives.py:" in report.largest.operation


def test_the_callers_random_state_and_dtype_stay_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_objective(broken.Right)
    assert torch.equal(torch.rand(3), expected) and torch.get_default_dtype() is torch.float32


def test_an_objective_of_a_notebook_travels_to_the_processes():
    names: dict[str, object] = {"__name__": "__main__"}
    source = Path(broken.__file__).read_text().split("class GatherWithoutGradient")[0]
    exec(source, names)
    check_objective(names["Right"])


def test_what_is_no_objective_or_no_factory_is_refused():
    assert "no Objective; derive from Objective" in findings(lambda spec: torch.nn.Linear(2, 2))[0]
    assert "contract: raises TypeError" in findings(lambda: None)[0]

    class Bare(broken.Right):
        def forward(self, embeddings, batch):
            return super().forward(embeddings, batch).loss

    assert "return ObjectiveOutput(loss, logs)" in findings(Bare)[0]
    assert ObjectiveOutput(torch.zeros(()), {}).loss == 0


def test_sizes_of_no_use_are_refused():
    with pytest.raises(InputError, match="rows=7"):
        check_objective(broken.Right, rows=7)


def test_a_rank_that_skips_a_collective_is_found(monkeypatch):
    monkeypatch.setattr(shared_processes(), "timeout", 4)
    (found,) = findings(broken.SkipsACollective)
    assert "every rank must join every collective" in found
