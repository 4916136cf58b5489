"""The objectives' maths: pure functions of tensors, without state and without ranks."""

from mofi_lightning.functional.adagrad import row_wise_adagrad_
from mofi_lightning.functional.contrastive import info_nce, pairwise_logsumexp, positive_mean
from mofi_lightning.functional.margin import cosface_logits
from mofi_lightning.functional.ranking import hinge_rank

__all__ = [
    "cosface_logits",
    "hinge_rank",
    "info_nce",
    "pairwise_logsumexp",
    "positive_mean",
    "row_wise_adagrad_",
]
