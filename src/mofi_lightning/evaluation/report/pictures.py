"""Neighbours of queries as pictures: the same queries for all models, and the worst of each."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.contents import ModelReport
from mofi_lightning.evaluation.report.queries import NEIGHBOURS, Found
from mofi_lightning.evaluation.report.tables import text
from mofi_lightning.evaluation.report.thumbnails import Thumbnails

_OPEN = 3  # queries whose neighbours are shown unasked


def entity_name(data: EvaluationSet, row: int) -> str:
    """What an image shows, as HTML."""
    return text(data.names.get(data.entities[row], data.entities[row]))


def neighbour_grids(models: Sequence[ModelReport], thumbnails: Thumbnails) -> str:
    """For each query, a row of its nearest images a model; empty where there is nothing to find.

    Queries beyond the third are folded away.
    """
    data = models[0].data
    found = [{f.query: f for f in model.neighbours} for model in models]
    blocks = []
    for query in dict.fromkeys(query for of_model in found for query in of_model):
        rows = "".join(
            f'<div class="row"><span>{text(model.name)}<small>{_count(data, of_model[query])}</small></span>'
            f"{_hits(data, of_model[query], thumbnails)}</div>"
            for model, of_model in zip(models, found, strict=True)
            if query in of_model
        )
        blocks.append(
            f'<div class="query"><figure>{_picture(data, query, thumbnails)}'
            f"<figcaption>{_clamped(data, query)}</figcaption></figure><div>{rows}</div></div>"
        )
    first, more = "".join(blocks[:_OPEN]), "".join(blocks[_OPEN:])
    queries = "query" if len(blocks) - _OPEN == 1 else "queries"
    summary = f"<summary>{len(blocks) - _OPEN} more {queries}</summary>"
    return f"{first}<details>{summary}{more}</details>" if more else first


def worst_queries(models: Sequence[ModelReport], thumbnails: Thumbnails) -> str:
    """The hardest queries of each model: what it found, and the nearest of what it should have."""
    data = models[0].data
    blocks = []
    for model in models:
        rows = "".join(
            f'<div class="worst"><figure>{_picture(data, found.query, thumbnails)}'
            f"<figcaption>{_clamped(data, found.query)}<small>AP {precision:.3f}</small></figcaption>"
            "</figure>"
            f"{_hits(data, found, thumbnails)}"
            f'<figure class="wanted">{_picture(data, found.nearest, thumbnails)}<figcaption>'
            f"first right one<small>at place {found.rank:,}; {found.positives:,} to find</small>"
            "</figcaption></figure></div>"
            for precision, found in model.worst
        )
        if rows:
            blocks.append(f"<h4>{text(model.name)}</h4>{rows}")
    return "".join(blocks)


def _picture(data: EvaluationSet, row: int, thumbnails: Thumbnails) -> str:
    return thumbnails.named(row, entity_name(data, row))


def _clamped(data: EvaluationSet, row: int) -> str:
    name = entity_name(data, row)
    return f'<span title="{name}">{name}</span>'


def _count(data: EvaluationSet, found: Found) -> str:
    right = sum(data.entities[row] == data.entities[found.query] for row in found.neighbours)
    return f"{right} of {min(NEIGHBOURS, found.positives)}"


def _hits(data: EvaluationSet, found: Found, thumbnails: Thumbnails) -> str:
    items = []
    for row in found.neighbours:
        right = data.entities[row] == data.entities[found.query]
        name = f"{entity_name(data, row)}, {'right' if right else 'wrong'}"
        items.append(
            f'<li{" class=right" if right else ""} title="{name}">{thumbnails.named(row, name)}'
            f'<b aria-hidden="true">{"&#10003;" if right else "&#10007;"}</b></li>'
        )
    return f'<ol class="hits">{"".join(items)}</ol>'
