"""What a checkpoint says of its run in plain values, and the refusal to go on with another run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.training.module import PretrainingModule


def describe(module: PretrainingModule, vocabulary: EntityVocabulary | None) -> dict[str, Any]:
    """What `mofi_lightning.load` and `refuse_another` need, to be added to a checkpoint."""
    tokenizer, space = module.model.tokenizer, module.objective.label_space()
    described: dict[str, Any] = {
        "config": asdict(module.model.config),
        "tokenizer": None if tokenizer is None else tokenizer.to_json(),
    }
    if space is not None:
        name = next(name for name, part in module.named_modules() if part is space)
        described["label_space"] = {"config": asdict(space.config), "module": name}
    return {
        "dual_encoder": described,
        "freeze": list(module.frozen),
        "vocabulary": entities(vocabulary),
    }


def headline(module: PretrainingModule) -> str:
    """What is about to be trained and how, in one line; `lr` are the peak rates."""
    trainer, model = module.trainer, module.model
    parameters = [p for part in (model, module.objective) for p in part.parameters() if p.requires_grad]
    optimizer = trainer.optimizers[0]
    rates = sorted({group.get("initial_lr", group["lr"]) for group in optimizer.param_groups})
    rate = f"lr {rates[-1]:g}"
    if len(rates) > 1:
        rate = f"{len(rates)} rates, lr {rates[0]:.2g} to {rates[-1]:g}"
    copies = getattr(trainer.strategy, "replicas", 1)
    processes = trainer.world_size
    spread = "1 process" if processes == 1 else f"{processes} processes, copies: {copies}"
    encoders = f"{model.config.image}{'' if model.text is None else ' and a text tower'}"
    objective = type(module.objective).__name__.removeprefix("FSDP")
    number = sum(parameter.numel() for parameter in parameters)
    return (
        f"training {encoders} with {objective}: {number / 1e6:,.2f} M parameters, {spread}, "
        f"{trainer.precision}, {type(optimizer).__name__} ({rate}), "
        f"to step {trainer.max_steps:,} in {trainer.default_root_dir}"
    )


def entities(vocabulary: EntityVocabulary | None) -> dict[str, Any]:
    """How many there are, and which, in plain values."""
    return {"entities": len(vocabulary or ()), "fingerprint": _fingerprint(vocabulary)}


def refuse_other_entities(own: Mapping[str, Any], vocabulary: EntityVocabulary | None) -> None:
    """Refuse data whose labels mean other entities than those that an objective was built with.

    Args:
        own: what `entities` said of those.
        vocabulary: of the data.

    Raises:
        InputError: they differ.
    """
    if own["fingerprint"] != _fingerprint(vocabulary):
        raise InputError(
            f"this module was built for {own['entities']} entities (vocabulary "
            f"{own['fingerprint'] or 'none'}), the data set has {len(vocabulary or ())} "
            f"({_fingerprint(vocabulary) or 'none'}); pass a datamodule "
            "with the same data set, or make another PretrainingModule"
        )


def refuse_another(
    checkpoint: Mapping[str, Any],
    module: PretrainingModule,
    vocabulary: EntityVocabulary | None,
    training: bool,
) -> None:
    """Refuse to go on with another vocabulary, other label vectors or other frozen parameters.

    Args:
        checkpoint: with what `describe` added.
        module: that would be restored.
        vocabulary: of the data set.
        training: whether training goes on, so that what is frozen matters.

    Raises:
        InputError: it is of another run.
    """
    frozen = checkpoint.get("freeze", [])
    if training and frozen != module.frozen:
        raise InputError(
            f"the checkpoint was trained with model.freeze {frozen} and this run has {module.frozen}; "
            "resume with the same, or start anew with model.init_from"
        )
    space = module.objective.label_space()
    saved_space = (checkpoint["dual_encoder"].get("label_space") or {}).get("config")
    if space is not None and saved_space is not None and saved_space != asdict(space.config):
        raise InputError(
            f"the checkpoint was trained on label vectors of {saved_space} and this run's are of "
            f"{asdict(space.config)}; resume with the label_vectors of the checkpoint"
        )
    saved = checkpoint["vocabulary"]
    if saved["fingerprint"] != _fingerprint(vocabulary):
        raise InputError(
            f"the checkpoint was trained with {saved['entities']} entities (vocabulary "
            f"{saved['fingerprint'] or 'none'}), the data set has {len(vocabulary or ())} "
            f"({_fingerprint(vocabulary) or 'none'}); resume with the data set of the checkpoint, or start "
            "from its weights with model.init_from"
        )


def _fingerprint(vocabulary: EntityVocabulary | None) -> str:
    return "" if vocabulary is None else vocabulary.fingerprint
