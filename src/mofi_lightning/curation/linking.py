"""Entity linking: which entities of the knowledge base a text names.

The text alone decides, as in MOFI (section 2.1): a candidate is likelier the more of the *other* words of the
text belong to it. What the words leave open keeps its candidates, for the image check to choose among.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mofi_lightning.curation.knowledge_base import KnowledgeBase, words
from mofi_lightning.curation.mentions import Gazetteer


class Linker:
    """Links texts to entities.

    With P(w) the share of the corpus' texts that have the word w, and P(m) of a mention m its rarest word's,
    an entity e with alias m scores by naive Bayes against a text that names nothing (which scores 0),

        log (P(m | e) / P(m))  +  sum over the words w of e outside m of log(1 + P(w | e) / P(w)),

    and P(e | text) is the softmax over the text's candidates and that nothing. P(m | e) spreads half over the
    name and half over all aliases of e, P(w | e) evenly over the words of its aliases and description. So
    words that most texts have (picture, free, download) name nothing, though they are aliases of something.

    Args:
        knowledge_base: the entities.
        corpus: the texts to be linked, or a large sample of them.
        candidates: the most candidates a text keeps.
        least: the least P(e | text) of a candidate.
    """

    def __init__(
        self, knowledge_base: KnowledgeBase, corpus: Iterable[str], candidates: int = 16, least: float = 0.01
    ) -> None:
        self._knowledge_base = knowledge_base
        self._counts: Counter[str] = Counter()
        self._texts = 0
        for text in corpus:
            self._counts.update(set(words(text)))
            self._texts += 1
        self._most = candidates
        self._least = least
        self._gazetteer = Gazetteer(knowledge_base.candidates)
        self._bags = [
            frozenset(words(entity.description)).union(*(alias.split() for alias in aliases))
            for entity, aliases in zip(knowledge_base.entities, knowledge_base.aliases, strict=True)
        ]

    def link(self, text: str) -> dict[int, float]:
        """The entities that `text` may name: row in the knowledge base -> P(e | text), likeliest first.

        An entity named by several mentions counts with the best of them; ties are in row order.
        """
        tokens = words(text)
        counts = Counter(tokens)
        scores: dict[int, float] = {}
        for alias in {mention.alias: None for mention in self._gazetteer.find(tokens)}:
            for row in self._knowledge_base.candidates[alias]:
                score = self._score(row, alias.split(), counts)
                scores[row] = max(scores.get(row, score), score)
        top = max(scores.values(), default=0.0)
        total = math.exp(-top) + sum(math.exp(score - top) for score in scores.values())
        likeliest = sorted(scores, key=lambda row: (-scores[row], row))[: self._most]
        linked = {row: math.exp(scores[row] - top) / total for row in likeliest}
        return {row: probability for row, probability in linked.items() if probability >= self._least}

    def _score(self, row: int, mention: Sequence[str], counts: Mapping[str, int]) -> float:
        """The score of entity `row` in a text with the words `counts`, of which it is named by `mention`."""
        named = self._knowledge_base.names[row] == " ".join(mention)
        prior = (0.5 if named else 0.0) + 0.5 / len(self._knowledge_base.aliases[row])
        # over the entity's few words, not over the text's, which may be millions
        bag = self._bags[row]
        outside = [word for word in sorted(bag) if counts.get(word, 0) > mention.count(word)]
        agreement = sum(math.log1p(1 / len(bag) / self._share(word)) for word in outside)
        return math.log(prior / min(map(self._share, mention))) + agreement

    def _share(self, word: str) -> float:
        # one more text, which has every word, keeps unseen words finite
        return (self._counts[word] + 1) / (self._texts + 1)
