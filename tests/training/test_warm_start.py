"""Warm starts, freezing and the teacher, on one process and on two."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from tests.training.runs import ENCODER, trainer, whole
from torch.nn import functional as F

from mofi_lightning import Batch, Embeddings, InputError, Objective, ObjectiveOutput, ObjectiveSpec, load
from mofi_lightning.distributed import global_mean
from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.teacher import Teacher, TeacherConfig
from mofi_lightning.objectives import CLIP, MOFI, DeViSE, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule, synthetic_vocabulary
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.warm_start import freeze, initialise, keep_frozen_in_eval

NO_TABLE = CLIP(ObjectiveSpec(8, 8))


class Distillation(Objective):
    """Squared distance of the mapped image to the teacher's vector."""

    requires = frozenset({"teacher"})

    def __init__(self, spec: ObjectiveSpec) -> None:
        super().__init__()
        assert spec.teacher_dim is not None
        self.map = torch.nn.Linear(spec.embed_dim, spec.teacher_dim)

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        distance = (self.map(embeddings.image) - embeddings.teacher).square().sum(1)
        return ObjectiveOutput(global_mean(distance, torch.ones_like(distance, dtype=torch.bool)), {})


def train(
    root: str,
    steps: int,
    objective: Any = CLIP,
    encoder: Any = ENCODER,
    precision: str = "64-true",
    **options: Any,
) -> dict[str, Any]:
    """States before and after training, in fp64 unless another precision is given."""
    torch.set_default_dtype(torch.float64 if precision == "64-true" else torch.float32)
    try:
        seed_everything(3, verbose=False)
        model = PretrainingModule(encoder, objective, Optimization(lr=1e-2, warmup_steps=1), **options)
        states: list[dict[str, torch.Tensor]] = []

        def remember() -> None:
            states.append({name: whole(value) for name, value in model.state_dict().items()})

        model.on_fit_start = remember  # type: ignore[method-assign]
        run = trainer(Path(root), steps, precision=None if precision == "64-true" else precision)
        run.fit(model, datamodule=SyntheticDataModule(rows=16, num_entities=20))
        remember()
        return {"before": states[0], "after": states[1]}
    finally:
        torch.set_default_dtype(torch.float32)


def changed(result: dict[str, Any]) -> set[str]:
    return {name for name, value in result["after"].items() if not torch.equal(value, result["before"][name])}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_frozen_parameters_keep_their_values_on_one_process_and_on_two(pool, tmp_path):
    patterns = ["model.image.encoder.*", "objective.logit_scale"]
    one = train(str(tmp_path / "one"), 3, freeze=patterns)
    two = pool(2, functools.partial(train, freeze=patterns), str(tmp_path / "two"), 3)
    moved = changed(one)
    assert "model.image.projection.weight" in moved
    assert any(name.startswith("model.text.encoder.") for name in moved)
    assert not any(name.startswith(("model.image.encoder.", "objective.")) for name in moved)
    same(two[0]["after"], one["after"])


def test_a_table_is_trained_whose_objective_has_but_frozen_parameters(pool, tmp_path):
    options = {"objective": functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=8))}
    free = train(str(tmp_path / "free"), 3, **options)
    options["freeze"] = ["objective.*logit_scale"]
    one = train(str(tmp_path / "one"), 3, **options)
    two = pool(2, functools.partial(train, **options), str(tmp_path / "two"), 3)
    assert changed(free) - changed(one) == {"objective.objectives.contrastive.logit_scale"}
    assert one["after"]["objective.objectives.entity.draws"].item() == 3
    table, moment = (one["after"][f"objective.objectives.entity.{n}"] for n in ("table", "second_moment"))
    moved = (table != one["before"]["objective.objectives.entity.table"]).flatten(1).any(1)
    assert moved.sum() >= 8 and torch.equal(moment.any(1), moved)
    for result in two:
        same(result["after"], one["after"])


def test_devise_draws_a_new_order_in_every_step_whatever_is_frozen(tmp_path):
    path = tmp_path / "vectors.parquet"
    vocabulary = synthetic_vocabulary(20)
    table = pa.table({"id": list(vocabulary.ids), "vector": torch.randn(20, 5).tolist()})
    pq.write_table(table.replace_schema_metadata({"mofi.model": "glove", "mofi.descriptions": "true"}), path)
    objective = functools.partial(DeViSE, label_vectors=str(path))
    result = train(str(tmp_path / "run"), 3, objective, freeze=["objective.*"])
    assert result["after"]["objective.draws"].item() == 3
    assert "objective.space.map.weight" in result["after"]
    assert not changed(result) & {"objective.space.map.weight"}


def test_what_is_frozen_within_an_objective_is_in_evaluation_mode_and_the_objective_is_not():
    parts = {"entity": CLIP(ObjectiveSpec(8, 8)), "head": torch.nn.Sequential(torch.nn.Linear(2, 2))}
    module = torch.nn.ModuleDict({"objectives": torch.nn.ModuleDict(parts)}).requires_grad_(False)
    keep_frozen_in_eval(module)
    assert module.training and parts["entity"].training
    assert not parts["head"].training and not parts["head"][0].training


def test_a_checkpoint_is_not_resumed_with_other_frozen_parameters(tmp_path):
    seed_everything(3, verbose=False)
    data = SyntheticDataModule(rows=16, num_entities=20)
    first = trainer(tmp_path, 1, callbacks=[StepCheckpoint()], enable_checkpointing=True)
    first.fit(PretrainingModule(ENCODER, CLIP), datamodule=data)
    with pytest.raises(InputError, match=r"trained with model.freeze \[\] and this run has \['model.image"):
        trainer(tmp_path, 2).fit(
            PretrainingModule(ENCODER, CLIP, freeze=["model.image.*"]),
            datamodule=data,
            ckpt_path=latest_checkpoint(tmp_path),
            weights_only=True,
        )


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    encoder = DualEncoderConfig(image="timm/test_resnet", embed_dim=8, text=ENCODER.text)
    statistics = {
        "model.image.encoder.model.bn1.running_mean",
        "model.image.encoder.model.bn1.num_batches_tracked",
    }
    assert statistics <= changed(train(str(tmp_path / "free"), 2, encoder=encoder))
    frozen = train(str(tmp_path / "frozen"), 2, encoder=encoder, freeze=["model.image.encoder.*"])
    assert {name for name in changed(frozen) if "image" in name} == {"model.image.projection.weight"}


def test_batch_norm_in_training_is_refused_on_several_processes(pool, tmp_path):
    encoder = DualEncoderConfig(image="timm/test_resnet", embed_dim=8, text=ENCODER.text)
    with pytest.raises(RuntimeError, match="is a BatchNorm, whose statistics several processes"):
        pool(2, functools.partial(train, encoder=encoder), str(tmp_path), 1)


def test_frozen_batch_norm_trains_in_bf16_on_two_processes(pool, tmp_path):
    options = {"encoder": DualEncoderConfig(image="timm/test_resnet", embed_dim=8, text=ENCODER.text)}
    options |= {"freeze": ["model.image.encoder.*"], "precision": "bf16-mixed"}
    two = pool(2, functools.partial(train, **options), str(tmp_path), 2)
    for result in two:
        assert "model.image.projection.weight" in changed(result)
        assert all(value.isfinite().all() for value in result["after"].values())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["model.imgae.*"], r"'model.imgae.\*' matches no parameter; did you mean 'model.image.\*'"),
        (["*"], "leaves no parameter to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(patterns, message):
    module = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"image": torch.nn.Linear(2, 2)})})
    with pytest.raises(InputError, match=message):
        freeze(module, patterns)


def test_a_warm_start_takes_what_fits_and_reports_the_rest(tmp_path):
    torch.manual_seed(0)
    source = DualEncoder.from_config(DualEncoderConfig(embed_dim=16, text=ENCODER.text))
    source.save(tmp_path / "run" / "model")
    target = DualEncoder.from_config(DualEncoderConfig(embed_dim=8))
    before = copy.deepcopy(target.state_dict())
    report = initialise(target, NO_TABLE, str(tmp_path / "run"), None)
    statistics = ("image.mean", "image.std")  # of the configuration, not of the weights
    after, given = (
        {name: value for name, value in model.state_dict().items() if name not in statistics}
        for model in (target, source)
    )
    taken = [name for name in after if name.startswith("image.encoder.")]
    assert all(torch.equal(after[name], given[name]) for name in taken)
    assert not any(torch.equal(before[name], after[name]) for name in taken if name.endswith("conv.weight"))
    assert torch.equal(after["image.projection.weight"], before["image.projection.weight"])
    assert f"{len(after) - 1} of {len(after)} tensors taken" in report
    text = sum(name.startswith("text.") for name in given)
    assert f"{text} unexpected, left out: text." in report and f"and {text - 3} more" in report
    width = source.feature_dim
    assert (
        f"1 of another shape, keep their start: image.projection.weight [16, {width}] for [8, {width}]"
        in report
    )
    assert "missing" not in report
    report = initialise(source, NO_TABLE, str(tmp_path / "run"), None)
    assert report == f"init_from {tmp_path / 'run'}: {len(given)} of {len(given)} tensors taken"


def test_another_tokenizer_is_refused_and_other_statistics_stay(tmp_path):
    source = DualEncoder.from_config(DualEncoderConfig(embed_dim=8, text=ENCODER.text))
    source.save(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, "version": "other"}))
    preprocess = Preprocess(size=32, mean=(0.1, 0.1, 0.1))
    target = DualEncoder.from_config(DualEncoderConfig(embed_dim=8, preprocess=preprocess))
    initialise(target, NO_TABLE, str(tmp_path), None)
    assert target.image.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    with pytest.raises(InputError, match="has another tokenizer than this model"):
        initialise(source, NO_TABLE, str(tmp_path), None)


def _resume_with_an_unused_text_tower(root: str) -> int:
    seed_everything(3, verbose=False)
    module = [PretrainingModule(ENCODER, EntitySoftmax) for _ in range(2)]
    data = SyntheticDataModule(rows=16, num_entities=20)
    for number, path in enumerate((None, "last")):
        run = trainer(Path(root), number + 1, callbacks=[StepCheckpoint()], enable_checkpointing=True)
        checkpoint_path = path and latest_checkpoint(Path(root))
        run.fit(module[number], datamodule=data, ckpt_path=checkpoint_path, weights_only=True)
    return run.global_step


def test_two_processes_resume_with_a_text_tower_that_the_objective_does_not_use(pool, tmp_path):
    assert pool(2, _resume_with_an_unused_text_tower, str(tmp_path)) == [2, 2]


def test_a_model_of_which_nothing_fits_is_refused(tmp_path):
    DualEncoder.from_config(DualEncoderConfig(image="timm/test_vit")).save(tmp_path)
    with pytest.raises(InputError, match=r"none of its \d+ tensors fits"):
        initialise(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), NO_TABLE, str(tmp_path), None)  # type: ignore[arg-type]


def test_training_starts_from_the_given_weights_on_one_process_and_on_two(pool, tmp_path, capsys):
    train(str(tmp_path / "first"), 2)
    given = checkpoint.read(tmp_path / "first").weights
    warm = train(str(tmp_path / "one"), 2, init_from=str(tmp_path / "first"))
    for name, value in given.items():
        assert torch.equal(warm["before"][f"model.{name}"], value), name
    assert f"init_from {tmp_path / 'first'}: " in capsys.readouterr().out
    two = pool(2, functools.partial(train, init_from=str(tmp_path / "first")), str(tmp_path / "two"), 2)
    same(two[0]["after"], warm["after"])


def test_the_teacher_stays_as_it_is_and_is_no_part_of_the_model(pool, tmp_path):
    options = {"objective": Distillation, "teacher": TeacherConfig("timm/test_vit")}
    one = train(str(tmp_path / "one"), 3, **options)
    two = pool(2, functools.partial(train, **options), str(tmp_path / "two"), 3)
    moved = changed(one)
    assert {"objective.map.weight", "model.image.projection.weight"} <= moved
    assert any(name.startswith("teacher.") for name in one["after"])
    assert not any(name.startswith("teacher.") for name in moved)
    same(two[0]["after"], one["after"])
    assert not any("teacher" in name for name in load(tmp_path / "one").state_dict())


def test_a_teacher_gives_the_vectors_of_its_backbone_or_model_whatever_the_size_of_the_images(tmp_path):
    torch.manual_seed(0)
    model = DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).eval()
    model.save(tmp_path)
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    teacher = Teacher(TeacherConfig(str(tmp_path)))
    assert teacher.dim == 8 and not teacher.training
    torch.testing.assert_close(teacher(image), model.encode_image(image).detach())
    backbone = Teacher(TeacherConfig("timm/test_vit"))
    size = backbone.size
    resized = F.interpolate(image / 255, (size, size), mode="bilinear", antialias=True)
    features = backbone.tower(resized).features
    assert size != 32 and backbone.dim == features.shape[1]
    torch.testing.assert_close(backbone(image), F.normalize(features, dim=1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig("runs/nothing"), "'runs/nothing' is neither a backbone"),
        (TeacherConfig("timm/nothing"), "timm has no model 'nothing'"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(config, message):
    with pytest.raises(InputError, match=message):
        Teacher(config)


def test_a_trained_model_as_teacher_takes_no_options(tmp_path):
    DualEncoder.from_config(DualEncoderConfig()).save(tmp_path)
    with pytest.raises(InputError, match="takes no image_options"):
        Teacher(TeacherConfig(str(tmp_path), {"pretrained": True}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Distillation}, "needs 'teacher', but there is none; set model.teacher.image"),
        (
            {"teacher": TeacherConfig("timm/test_vit")},
            "model.teacher is set but objective 'CLIP' learns from none",
        ),
    ],
)
def test_a_missing_and_a_useless_teacher_are_named(options, message, tmp_path):
    if options.get("objective") is Distillation:
        options = {**options, "objective": functools.partial(_without_teacher_dim)}
    with pytest.raises(InputError, match=message):
        train(str(tmp_path), 1, **options)


def _without_teacher_dim(spec: ObjectiveSpec) -> Distillation:
    return Distillation(ObjectiveSpec(spec.embed_dim, spec.feature_dim, teacher_dim=3))
