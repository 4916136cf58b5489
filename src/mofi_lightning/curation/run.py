"""One run of curation: the stages in their order, from the knowledge base to the ranked candidates."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mofi_lightning.curation.inputs import Inputs
from mofi_lightning.curation.knowledge_bases.knowledge_base import FILE_NAME, KnowledgeBase
from mofi_lightning.curation.labels.selection import Criteria
from mofi_lightning.curation.stages.agreement import Agreement, Standard
from mofi_lightning.curation.stages.base import Stage, atomic, fingerprint
from mofi_lightning.curation.stages.choose import Chooser, Chosen
from mofi_lightning.curation.stages.counting import Corpus
from mofi_lightning.curation.stages.engines import Map
from mofi_lightning.curation.stages.images import Block, EmbedEntities, ScoreImages, usable_images
from mofi_lightning.curation.stages.labels import RankCandidates, candidate_rows
from mofi_lightning.curation.stages.parts import Part, check_keys
from mofi_lightning.curation.stages.texts import CountWords, LinkTexts, sample
from mofi_lightning.curation.truth import Truth
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.progress import track_rows
from mofi_lightning.types import InputError

# part of every fingerprint: raised when what a stage writes changes its meaning
_VERSION = 3
# of agreement: a third one changes next to nothing
_PASSES = 2
# entities that a worker embeds at a time
_BLOCK = 4_096


class Run:
    """The stages of one curation. Each is done when it is first asked for, and those before it with it.

    Args:
        inputs: what it is made from.
        folder: of the stages.
        map_parts: the engine.
        parts: of the corpus.
    """

    def __init__(self, inputs: Inputs, folder: Path, map_parts: Map, parts: Sequence[Part]) -> None:
        self._inputs = inputs
        self._folder = folder
        self._map = map_parts
        self.parts = parts

    @cached_property
    def knowledge_base(self) -> KnowledgeBase:
        """The knowledge base; made of the file of entities first where only that is given."""
        from mofi_lightning.curation.knowledge_bases.knowledge_base import build_knowledge_base
        from mofi_lightning.curation.knowledge_bases.tables import TableReader

        given = self._inputs.knowledge_base
        if (given / FILE_NAME).is_file():
            return KnowledgeBase(given)
        if not given.is_file():
            raise InputError(
                f"no knowledge base at {given}; `mofi kb build` makes one, --knowledge_base names it"
            )
        stage = Stage(self._folder / "knowledge_base", fingerprint(_VERSION, given))
        stage.prepare()
        built = stage.folder / "built"
        if built.exists():
            try:
                return KnowledgeBase(built)
            except InputError:  # damaged since
                shutil.rmtree(built)
        reader = TableReader(given)
        base = build_knowledge_base(reader.entities(), built, reader.faults, reader.count())
        for reason, count in sorted(reader.faults.counts.items()):
            print(f"knowledge base {given}: {count:,} x {reason}")
        return base

    @cached_property
    def ingested(self) -> Stage:
        """The pairs, whose keys were found to be unique."""
        rows = [(part.first, part.stop, part.rows) for part in self.parts]
        files = list(dict.fromkeys(part.file for part in self.parts))
        stage = Stage(self._folder / "ingested", fingerprint(_VERSION, files, rows))
        stage.prepare()
        check_keys(stage, self.parts)
        return stage

    @cached_property
    def words(self) -> Path:
        """File of the number of texts that have each word of the knowledge base."""
        from mofi_lightning.curation.texts.word_counts import WordCounts

        base = self.knowledge_base
        stage = Stage(self._folder / "words", fingerprint(self.ingested.fingerprint, base.fingerprint))
        sampled = sample(self.parts)
        self._each(CountWords(stage, base.folder), sampled, stage, "counting words", ".npz")
        total = stage.folder / "total.npz"
        if not total.exists():
            counts = WordCounts.load(stage.file(sampled[0].number, ".npz"))
            for part in sampled[1:]:
                counts += WordCounts.load(stage.file(part.number, ".npz"))
            counts.save(total)
        return total

    @cached_property
    def linked(self) -> Stage:
        """The candidates of every text."""
        inputs, base, words = self._inputs, self.knowledge_base, self.words
        made_from = [self.ingested.fingerprint, base.fingerprint, inputs.detectors, inputs.linking]
        sentences = Path(inputs.linking.sentence_model or "")
        made_from += [sentences] if inputs.linking.sentence_model and sentences.exists() else []
        stage = Stage(self._folder / "linked", fingerprint(*made_from))
        job = LinkTexts(stage, base.folder, words, inputs.detectors, inputs.linking)
        self._each(job, self.parts, stage, "linking texts")
        return stage

    @cached_property
    def entities(self) -> Stage:
        """Folder of the entities that any text may name, and with a scorer of their embeddings.

        `rows.npy`: rows of the knowledge base, int32 `[U]`, ascending. `vectors.npy`: float32 `[U, D]`.
        """
        inputs, linked = self._inputs, self.linked
        stage = Stage(
            self._folder / "entities",
            fingerprint(linked.fingerprint, inputs.scorer_files, inputs.templates),
        )
        stage.prepare()
        file = stage.folder / "rows.npy"
        if not file.exists():
            rows = candidate_rows(linked, self.parts, len(self.knowledge_base))
            if not len(rows):
                raise InputError(
                    "no text names an entity of the knowledge base; are pairs and knowledge base of one kind?"
                )
            with atomic(file) as partial:
                np.save(partial, rows)
        if inputs.scorer is not None and not (stage.folder / "vectors.npy").exists():
            self._embed_entities(stage, inputs.scorer, len(np.load(file, mmap_mode="r")))
        return stage

    def _embed_entities(self, stage: Stage, scorer: str, count: int) -> None:
        starts = range(0, count, _BLOCK)
        blocks = [Block(n, start, min(count, start + _BLOCK)) for n, start in enumerate(starts)]
        rows, templates = stage.folder / "rows.npy", self._inputs.templates
        job = EmbedEntities(stage, self.knowledge_base.folder, rows, scorer, templates)
        self._each(job, blocks, stage, "embedding entities", ".npy")
        parts = [stage.file(block.number, ".npy") for block in blocks]
        embed_dim = np.load(parts[0], mmap_mode="r").shape[1]
        with atomic(stage.folder / "vectors.npy") as file:
            vectors = np.lib.format.open_memmap(file, "w+", np.float32, (count, embed_dim))
            for block, part in zip(blocks, parts, strict=True):
                vectors[block.start : block.stop] = np.load(part)
            vectors.flush()
        for part in parts:
            part.unlink()

    @cached_property
    def scored(self) -> Stage:
        """How every image fits its candidates."""
        inputs, entities = self._inputs, self.entities
        keep = inputs.agreement and inputs.scorer is not None
        perceptual = bool(inputs.corpus_filters)
        made_from = (entities.fingerprint, inputs.pair_filters, keep, perceptual)
        stage = Stage(self._folder / "scored", fingerprint(*made_from))
        job = ScoreImages(
            stage, self.linked, inputs.pair_filters, inputs.scorer, entities.folder, keep, perceptual
        )
        self._each(job, self.parts, stage, "checking images")
        return stage

    @cached_property
    def standard(self) -> Standard:
        """What brings cosines to one scale: their statistics over all images."""
        from mofi_lightning.curation.images.similarity import Moments, entity_statistics

        stage = Stage(self._folder / "statistics", fingerprint(self.scored.fingerprint))
        stage.prepare()
        standard = Standard(self.entities.folder / "rows.npy", stage.folder)
        if (stage.folder / "moments.npz").exists():
            return standard
        total = Moments.load(self.scored.file(self.parts[0].number, ".npz"))
        for part in self.parts[1:]:
            total += Moments.load(self.scored.file(part.number, ".npz"))
        if not total.count:
            raise InputError(self.no_image())
        vectors = np.load(self.entities.folder / "vectors.npy", mmap_mode="r")
        found = entity_statistics(total.background, vectors)
        for name, values in zip(("mean", "deviation"), found, strict=True):
            with atomic(stage.folder / f"{name}.npy") as file:
                np.save(file, values)
        with atomic(stage.folder / "moments.npz") as file:
            total.save(file)
        return standard

    @cached_property
    def copies(self) -> Stage:
        """Which images a filter of the whole corpus leaves out, or are the same as an earlier one."""
        from mofi_lightning.curation.labels.duplicates import duplicates
        from mofi_lightning.curation.labels.filters import apply_to_corpus

        scored, filters = self.scored, self._inputs.corpus_filters
        stage = Stage(self._folder / "copies", fingerprint(scored.fingerprint, filters))
        stage.prepare()
        if all(stage.file(part.number, ".npy").exists() for part in self.parts):
            return stage
        hashes = np.concatenate([scored.read(p.number, "hash")["hash"].to_numpy() for p in self.parts])
        usable = np.concatenate([usable_images(scored, part.number) for part in self.parts])
        copies = np.zeros(len(hashes), dtype=bool)
        copies[usable] = duplicates(hashes[usable], 0)
        for removed in apply_to_corpus(filters, hashes[usable]).values():
            copies[np.flatnonzero(usable)[removed]] = True
        start = 0
        for part in self.parts:
            with atomic(stage.file(part.number, ".npy")) as file:
                np.save(file, copies[start : start + part.rows])
            start += part.rows
        return stage

    @cached_property
    def agreed(self) -> Stage | None:
        """How every image fits the other images of its candidates.

        In two passes: what the first one finds tells better which images show the entity, and so whose
        agreement counts.
        """
        if self._inputs.scorer is None or not self._inputs.agreement:
            return None
        before: Stage | None = None
        for number in range(1, _PASSES + 1):
            stage = Stage(self._folder / f"agreed-{number}", fingerprint(self.copies.fingerprint))
            stage.prepare()
            job = Agreement(stage, self.linked, self.scored, self.copies, self.standard, before)
            if not job.is_summed():
                job.sum(self._track(f"summing images, {number} of {_PASSES}"))
            self._each(job, self.parts, stage, f"comparing images, {number} of {_PASSES}")
            before = stage
        return before

    def ranked(self, top_k: int) -> RankCandidates:
        """The best candidates of every image."""
        scored, agreed = self.scored, self.agreed
        made_from = scored.fingerprint if agreed is None else agreed.fingerprint
        stage = Stage(self._folder / "ranked", fingerprint(made_from, top_k))
        standard = None if self._inputs.scorer is None else self.standard
        job = RankCandidates(stage, self.linked, scored, agreed, standard, top_k)
        self._each(job, self.parts, stage, "ranking candidates")
        return job

    def choose(self, criteria: Criteria, ranked: Stage, made_from: str) -> tuple[Chosen, Corpus, Stage]:
        """Choose the labels: what was chosen, what is known of the corpus, and the stage of the labels."""
        inputs, base = self._inputs, self.knowledge_base
        truth = None if inputs.truth is None else Truth.load(inputs.truth, inputs.truth_splits, base)
        corpus = Corpus(self.parts, base, self.linked, self.scored, truth)
        corpus.remove(inputs.corpus_filters)
        if not corpus.readable:
            raise InputError(self.no_image())
        steps = corpus.count(criteria.top_k)
        labels = Stage(self._folder / "labels", made_from)
        labels.prepare()
        previous = None if inputs.vocabulary is None else EntityVocabulary.load(inputs.vocabulary)
        work = self._folder / "shuffle"
        shutil.rmtree(work, ignore_errors=True)
        chosen = Chooser(corpus, ranked, labels, criteria, previous, work).choose()
        shutil.rmtree(work, ignore_errors=True)
        return chosen._replace(steps=[*steps, *chosen.steps]), corpus, labels

    def no_image(self) -> str:
        """Why no image is left."""
        found = (self.scored.read(part.number, "error")["error"].drop_null() for part in self.parts)
        first = next((errors[0].as_py() for errors in found if len(errors)), None)
        rows = sum(part.rows for part in self.parts)
        removed = Counter(
            name
            for part in self.parts
            for name in self.scored.read(part.number, "removed")["removed"].to_pylist()
        )
        counts = ", ".join(f"{name} {count:,}" for name, count in removed.items() if name)
        why = f"the filters removed: {counts}" if first is None else f"the first: {first}"
        return f"none of the {rows:,} images of {self._inputs.pairs} can be used; {why}"

    def _track(self, title: str) -> Iterator[Part]:
        steps = track_rows((part.rows for part in self.parts), title, sum(part.rows for part in self.parts))
        return (part for part, _ in zip(self.parts, steps, strict=True))

    def _each(
        self,
        job: Any,
        tasks: Sequence[Part] | Sequence[Block],
        stage: Stage,
        title: str,
        suffix: str = ".parquet",
    ) -> None:
        """Do the parts of a stage that are missing."""
        stage.prepare()
        missing = [task for task in tasks if not stage.file(task.number, suffix).exists()]
        if not missing:
            return
        for _ in track_rows(self._map(job, missing), title, sum(task.rows for task in missing)):
            pass
