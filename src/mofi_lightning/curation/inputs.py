"""What a curation is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.curation.labels.filters import CorpusFilter, Filter, PairFilter
from mofi_lightning.curation.stages.parts import Part, cut, pairs_files
from mofi_lightning.curation.texts.linking import Linking
from mofi_lightning.curation.texts.mentions import MentionDetector
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Inputs:
    """Everything but the criteria of selection; the fields are the arguments of `pipeline.curate`."""

    pairs: Path
    split: str
    knowledge_base: Path
    truth: Path | None
    scorer: str | None
    detectors: tuple[MentionDetector, ...]
    filters: tuple[Filter, ...]
    linking: Linking
    templates: tuple[str, ...]
    agreement: bool
    vocabulary: Path | None
    part_rows: int

    def check(self) -> None:
        """Raise InputError if something cannot be used, before any work is done."""
        from mofi_lightning.curation.images.entity_texts import check_templates
        from mofi_lightning.data.vocabulary import EntityVocabulary

        if self.part_rows < 1:
            raise InputError(f"part_rows {self.part_rows} is out of range; a part has at least 1 row")
        if not self.detectors:
            raise InputError("detectors is an empty list, which finds nothing; name at least one")
        self.parts()
        check_templates(self.templates)
        if isinstance(self.scorer_files, Path) and not self.scorer_files.exists():
            raise InputError(
                f"no scorer at {self.scorer}; give a folder or checkpoint of an image-text model"
            )
        if self.truth is not None and not self.truth.is_file():
            raise InputError(f"no truth file at {self.truth}; leave --truth out if nobody knows it")
        if self.vocabulary is not None:
            EntityVocabulary.load(self.vocabulary)
        if self.scorer is not None:
            from mofi_lightning.encoders.peers import load_encoder

            load_encoder(self.scorer)

    def parts(self) -> list[Part]:
        """The pairs in parts."""
        return cut(pairs_files(self.pairs, self.split), self.part_rows)

    @property
    def pair_filters(self) -> tuple[PairFilter, ...]:
        """The filters that judge pairs by themselves."""
        return tuple(f for f in self.filters if isinstance(f, PairFilter))

    @property
    def corpus_filters(self) -> tuple[CorpusFilter, ...]:
        """The filters that compare all images."""
        return tuple(f for f in self.filters if isinstance(f, CorpusFilter))

    @property
    def scorer_files(self) -> Path | str | tuple[str, Path] | None:
        """What the scorer is: its files, with open_clip's architecture, or its name on the hub."""
        from mofi_lightning.encoders import checkpoint

        name = self.scorer
        if name is None:
            return None
        architecture, _, file = name.removeprefix("open_clip:").partition("=")
        if name.startswith("open_clip:"):
            return architecture, Path(file)
        path = Path(name)
        if path.exists() and checkpoint.is_model(path):
            return checkpoint.model_path(path)  # what else is in a run's folder does not change the scores
        return name if not path.exists() and name.count("/") == 1 and name[0] not in "./" else path

    @property
    def truth_splits(self) -> tuple[str, ...]:
        """What the pairs' split may be called in the truth file."""
        return (self.split,) if self.pairs.is_dir() else (self.pairs.stem, self.split)
