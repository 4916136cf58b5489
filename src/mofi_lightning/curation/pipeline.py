"""The verb `mofi curate`: pairs in, images with entities out, every step counted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mofi_lightning.curation.labels.filters import Filter
from mofi_lightning.curation.labels.selection import Criteria
from mofi_lightning.curation.stages.engines import EngineName
from mofi_lightning.curation.texts.linking import Linking
from mofi_lightning.curation.texts.mentions import Gazetteer, MentionDetector
from mofi_lightning.types import InputError

# the folder of the stages within the data set's
STAGES = "stages"


def curate(
    pairs: Path,
    output: Path,
    knowledge_base: Path | None = None,
    scorer: str | None = None,
    truth: Path | None = None,
    split: str = "train",
    detectors: list[MentionDetector] | None = None,
    filters: list[Filter] | None = None,
    linking: Linking = Linking(),
    templates: Sequence[str] = ("{name}", "a picture of {name}", "{name}, {description}", "{alias}"),
    agreement: bool = True,
    top_k: int = 1,
    threshold: float | None = None,
    keep: float | None = None,
    precision: float | None = None,
    min_images: int = 5,
    max_images: int | None = None,
    vocabulary: Path | None = None,
    engine: EngineName = "native",
    ray_address: str | None = None,
    num_workers: int | None = None,
    part_rows: int = 8192,
    dry_run: int | None = None,
) -> None:
    """Turn image + alt-text pairs into images with entities.

    The data set holds the pairs that keep at least one entity. Beside it stand report.html, the counts of
    every step (curation.json) and what the stages have found (stages/): a run that was interrupted goes on
    where it was when the same command is given again, and a second run repeats only what has changed. With
    other criteria, nothing is linked or scored again.

    Args:
        pairs: Parquet file of the pairs (key, image, text), as `mofi pairs` writes it, or a folder of them.
        output: Folder of the data set to write.
        knowledge_base: Folder that `mofi kb build` has made, or a table that it could read (parquet, csv,
            jsonl); knowledge_base.parquet beside the pairs by default.
        scorer: The CLIP-like model that checks the images: a folder, run or checkpoint of ours, a folder of
            Hugging Face, or open_clip:ARCHITECTURE=CHECKPOINT. Without one, the likeliest entities of the
            text are labels.
        truth: Parquet file of what the images show, for measuring only; truth.parquet beside the pairs by
            default, where there is one.
        split: Of a folder of pairs, the files to read.
        detectors: What finds the mentions in the texts; the gazetteer of the knowledge base by default.
            Others are mofi_lightning.plugins.spacy and those of plugins.
        filters: What is left out whatever it shows: small images, near-duplicates, texts without end.
        linking: How mentions become entities.
        templates: Texts of an entity for the scorer, with {name}, {alias} and {description}. Their embeddings
            are averaged; wordings like those of the pairs' texts score best.
        agreement: Whether an image is compared with the other images of its entities too, not only with the
            entities' texts. Their embeddings are then kept on disk (2 bytes a dimension).
        top_k: The most entities an image keeps.
        threshold: The lowest score of a label: the logarithm of its probability by the text plus, with a
            scorer, the standard deviations by which the image fits it better than images in general.
        keep: Instead of a threshold, the share of the labels to keep, those with the highest scores.
        precision: Instead of a threshold, the precision that the labels shall have, as estimated from the
            scores of the same candidates with other images.
        min_images: Entities with fewer images are dropped.
        max_images: The most images of an entity, those with the highest scores.
        vocabulary: Data set or vocabulary of an earlier curation: its entities keep their class ids, and new
            ones come after them.
        engine: Where the work is done: by processes of this machine, or by a Ray cluster.
        ray_address: Of a running Ray cluster whose machines share the file system; by default one is started
            on this machine.
        num_workers: Processes of this machine; one for each core by default. Each has the scorer in memory,
            on a GPU where there are some.
        part_rows: Rows that a worker takes at a time; an interrupted run repeats at most these.
        dry_run: Work on about so many rows only (whole row groups), write nothing, and say what the whole
            would cost.

    Raises:
        InputError: An input cannot be used, a value is out of range, or no label is left.
    """
    from mofi_lightning.curation.dry_run import estimate
    from mofi_lightning.curation.finish import finish, is_finished
    from mofi_lightning.curation.inputs import Inputs
    from mofi_lightning.curation.run import Run
    from mofi_lightning.curation.stages.base import fingerprint
    from mofi_lightning.curation.stages.engines import open_engine
    from mofi_lightning.data.file_locks import claimed
    from mofi_lightning.data.vocabulary import EntityVocabulary
    from mofi_lightning.data.writing import refuse_existing

    criteria = Criteria(top_k, threshold, keep, precision, min_images, max_images)
    # workers of a cluster have working directories of their own
    pairs, output = pairs.absolute(), output.absolute()
    inputs = Inputs(
        pairs=pairs,
        split=split,
        knowledge_base=(knowledge_base or _folder(pairs) / "knowledge_base.parquet").absolute(),
        truth=truth or _where_it_is(_folder(pairs) / "truth.parquet"),
        scorer=scorer if scorer is None or not Path(scorer).exists() else str(Path(scorer).absolute()),
        detectors=(Gazetteer(),) if detectors is None else tuple(detectors),
        filters=tuple(filters or []),
        linking=linking,
        templates=tuple(templates),
        agreement=agreement,
        vocabulary=vocabulary,
        part_rows=part_rows,
    )
    if precision is not None and scorer is None:
        raise InputError(f"precision {precision} is estimated from images that were scored; give a scorer")
    inputs.check()
    if dry_run is not None:
        with open_engine(engine, num_workers, ray_address) as map_parts:
            estimate(inputs, criteria, map_parts, dry_run, output)
        return
    fresh = not output.exists()
    mark = output / STAGES / "mofi-curate"  # a folder without it is another's
    if not mark.is_file():
        refuse_existing(output)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    with claimed(output / STAGES / "run", wait=False) as lock:
        if lock is None:
            raise InputError(f"another process is writing {output}; wait for it, or choose another output")
        try:
            with open_engine(engine, num_workers, ray_address) as map_parts:
                run = Run(inputs, output / STAGES, map_parts, inputs.parts())
                ranked = run.ranked(top_k)
                previous = None if vocabulary is None else EntityVocabulary.load(vocabulary).fingerprint
                chosen_by = (criteria, previous, inputs.corpus_filters, inputs.truth)
                made_from = fingerprint(ranked.stage.fingerprint, *chosen_by)
                if not is_finished(output, made_from):
                    chosen, corpus, labels = run.choose(criteria, ranked.stage, made_from)
                    finish(map_parts, corpus, ranked, labels, chosen, output, output / STAGES)
        except InputError:
            if fresh and not any((output / STAGES).rglob("*.parquet")):  # made for nothing
                shutil.rmtree(output)
            raise


def _folder(pairs: Path) -> Path:
    return pairs if pairs.is_dir() else pairs.parent


def _where_it_is(path: Path) -> Path | None:
    return path if path.is_file() else None
