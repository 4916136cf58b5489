"""Maps of the embeddings: a dot an image, its thumbnail beside it when one points at it, without a script."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.contents import ModelReport
from mofi_lightning.evaluation.report.pictures import entity_name
from mofi_lightning.evaluation.report.tables import text
from mofi_lightning.evaluation.report.thumbnails import Thumbnails

_GROUPS = 8  # colours that can be told apart
_MARGIN = 0.03  # of the plane, so that no dot lies on its edge


def maps(models: Sequence[ModelReport], thumbnails: Thumbnails, prefix: str) -> str:
    """One map a model, dots coloured by domain or by the most frequent entities, with a legend for all.

    A map is one group of radio buttons: the arrow keys go from image to image, one press of the tab key goes
    past all, and a finger has something to press.

    Args:
        models: on one data set.
        thumbnails: of the set.
        prefix: of the names of these groups in the page; each set has its own.
    """
    data = models[0].data
    if not any(model.projection.points for model in models):
        reasons = dict.fromkeys(model.projection.missing for model in models)
        return f"<p>No map: {text('; '.join(reasons), 200)}.</p>"
    groups = _groups(data, sorted({row for model in models for row in model.projection.points}))
    number_of = {row: number for number, (_, rows) in enumerate(groups) for row in rows}
    figures = []
    for number, model in enumerate(models):
        name, points = text(model.name), model.projection.points
        # dots without a group lie below; the arrow keys go through the images of one entity after the other
        order = sorted(points, key=lambda row: (number_of.get(row, -1), data.entities[row], row))
        dots = "".join(
            f"<label class={_style(number_of.get(row))} "
            f'style="--x:{_percent(points[row][0])};--y:{_percent(1 - points[row][1])}">'
            f'<input type=radio name="{prefix}{number}">{thumbnails.use(row)}'
            f"<b>{entity_name(data, row)}</b></label>"
            for row in order
        )
        drawing = (
            f'<div class="plane" role="radiogroup" aria-label="map of {name}">{dots}</div>'
            if points
            else f"<p>No map: {text(model.projection.missing, 200)}.</p>"
        )
        figures.append(f"<figure><figcaption>{name}</figcaption>{drawing}</figure>")
    rest = len({row for model in models for row in model.projection.points}) - len(number_of)
    signs = [(_style(number), text(name), len(rows)) for number, (name, rows) in enumerate(groups)]
    signs += [(_style(None), "all others", rest)] if groups and rest else []
    legend = "".join(
        f'<li><i class="{style}"></i>{name} <small>{size:,}</small></li>' for style, name, size in signs
    )
    about = (
        f"t-SNE of {len(number_of) + rest:,} images: what a model takes for similar lies close together; "
        "distances between groups mean little. A colour is "
        f"{'an entity' if data.domains is None else 'a domain'}. Point at a dot, touch it, or walk with "
        "the arrow keys from dot to dot to see its image."
    )
    return f'<p>{about}</p><ul class="legend">{legend}</ul><div class="maps">{"".join(figures)}</div>'


def _groups(data: EvaluationSet, rows: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Name and rows of what has a colour: eight domains, or the eight entities with most images."""
    kinds = data.entities if data.domains is None else data.domains
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(kinds[row], []).append(row)
    frequent = sorted(members, key=lambda kind: (-len(members[kind]), kind))[:_GROUPS]
    if data.domains is not None:
        return [(kind, members[kind]) for kind in members if kind in frequent]
    return [(data.names.get(kind, kind), members[kind]) for kind in frequent if len(members[kind]) > 1]


def _style(number: int | None) -> str:
    return "rest" if number is None else f"c{number}"


def _percent(share: float) -> str:
    return f"{100 * (_MARGIN + share * (1 - 2 * _MARGIN)):.1f}"
