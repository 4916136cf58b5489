"""ConSE, the baseline of DeViSE: labels that were never seen, from a classifier of those that were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mofi_lightning.encoders.label_vectors import read_label_vectors
from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators.candidate_labels import candidate_scores, protocols
from mofi_lightning.evaluation.evaluators.devise import HITS, PRECISION, check_k
from mofi_lightning.evaluation.measures.conse import conse_embedding
from mofi_lightning.evaluation.measures.linear_classifier import LinearClassifier
from mofi_lightning.evaluation.measures.linear_probe import fit_linear_probe
from mofi_lightning.evaluation.measures.scores import BLOCK, row_blocks
from mofi_lightning.evaluation.models.content import hash_files
from mofi_lightning.types import InputError


class ConSE(Evaluator):
    """Zero-shot classification by ConSE (Norouzi et al., ICLR 2014), on any frozen image encoder.

    A softmax over the seen classes is fitted to the features of the data's `fit` (the linear probe: what the
    paper's network has as its last layer). An image's embedding is the mean of the label vectors of its `top`
    classes, weighted by their probabilities; it is compared with the vectors of the candidates by cosine.
    Label vectors are brought to unit norm first, as DeViSE's.

    Args:
        label_vectors: parquet of the vectors of all classes, made by `mofi vectors`.
        top: T, the number of seen classes to combine.
        penalty: lambda of the linear probe; null searches it, which takes minutes for a thousand classes.
        hits: values of k of flat hit@k.
        precision: values of k of hierarchical precision@k, where the data has a hierarchy.
    """

    task = "conse_zeroshot"
    measures = ("conse_unseen_hit@5", "conse_generalized_hit@5")

    def __init__(
        self,
        label_vectors: Path,
        top: int = 10,
        penalty: float | None = None,
        hits: Sequence[int] = HITS,
        precision: Sequence[int] = PRECISION,
    ) -> None:
        if top < 1:
            raise InputError(f"ConSE combines the top {top} labels; give 1 or more, the paper's is 10")
        if penalty is not None and not penalty > 0:
            raise InputError(f"penalty {penalty} of ConSE's classifier is not positive; null searches one")
        self.label_vectors = str(label_vectors)
        self.top = top
        self.penalty = penalty
        self.hits = check_k(hits)
        self.precision = check_k(precision)

    @property
    def config(self) -> dict[str, Any]:
        """Class and settings, with a hash of the label vectors.

        Raises:
            InputError: there is no such file.
        """
        path = Path(self.label_vectors)
        if not path.is_file():
            raise InputError(f"no file of label vectors at {path}; make one with `mofi vectors`")
        return super().config | {"label_vectors_hash": hash_files(path)}

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped without unseen classes, or images to learn the seen ones from."""
        if not data.seen:
            return Measurement(skipped="the data does not say which classes were seen")
        images, fit = embedder.labelled(data), embedder.fit(data)
        if fit is None:
            return Measurement(skipped="the data has no images to learn the seen classes from")
        measured, notes = protocols(data, images)
        if not measured:
            return Measurement(skipped=notes[0])
        seen = torch.tensor([entity in data.seen for entity in data.classes])
        known = seen[fit.labels]
        _, counts = fit.labels[known].unique(return_counts=True)
        if len(counts) < 2 or (self.penalty is None and counts.max() < 2):
            return Measurement(skipped="too few images of seen classes to learn a classifier from")
        read = read_label_vectors(self.label_vectors, data.classes)
        vectors = F.normalize(torch.from_numpy(read.vectors))
        probe = fit_linear_probe(
            fit.features[known], fit.labels[known], penalty=self.penalty, title=embedder.description
        )
        if not probe.converged:
            notes += (f"the classifier of seen classes did not converge in {probe.iterations} iterations",)
        learnt = set(probe.classifier.classes.tolist())
        missing = [data.classes[row] for row in seen.nonzero().flatten().tolist() if row not in learnt]
        if missing:
            notes += (f"{len(missing)} seen classes have no image to learn from: {listed(missing)}",)
        combined = _combine(images.features, probe.classifier, vectors, self.top)
        scores: dict[str, Scores] = {}
        for protocol in measured:
            found, odd = candidate_scores(
                images, combined, vectors, data, protocol, self.hits, self.precision
            )
            scores |= {f"conse_{name}": values for name, values in found.items()}
            notes += odd
        return Measurement(scores, {"conse_lambda": probe.penalty, "conse_seen": float(len(learnt))}, notes)


def _combine(features: Tensor, classifier: LinearClassifier, vectors: Tensor, top: int) -> Tensor:
    """`conse_embedding` of images `[M, F]`, a block at a time."""
    seen = vectors[classifier.classes.cpu()].to(classifier.weight.device)
    blocks = []
    for block in row_blocks(len(features), max(len(seen), top * vectors.shape[1]), BLOCK // 2):
        logits = features[block].to(classifier.weight) @ classifier.weight.T + classifier.bias
        blocks.append(conse_embedding(logits.softmax(dim=1), seen, top).cpu())
    return torch.cat(blocks)
