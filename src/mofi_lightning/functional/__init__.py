"""The objectives' maths: pure functions of tensors, without state and without ranks."""

from mofi_lightning.functional.adagrad import row_wise_adagrad_
from mofi_lightning.functional.contrastive import (
    Repeats,
    check_targets,
    info_nce,
    pairwise_logsumexp,
    positive_mean,
)
from mofi_lightning.functional.margin import (
    MarginForm,
    MarginStatistics,
    margin_cosine,
    margin_statistics,
)
from mofi_lightning.functional.ranking import hinge_rank
from mofi_lightning.functional.repeats import repeat_groups, text_hash

__all__ = [
    "MarginForm",
    "MarginStatistics",
    "Repeats",
    "check_targets",
    "hinge_rank",
    "info_nce",
    "margin_cosine",
    "margin_statistics",
    "pairwise_logsumexp",
    "positive_mean",
    "repeat_groups",
    "row_wise_adagrad_",
    "text_hash",
]
