"""Rows of a data set as HTML, whatever their texts, names and images hold."""

from __future__ import annotations

from html import escape

import numpy as np

from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import ShardReader
from mofi_lightning.data.thumbnails import picture
from mofi_lightning.pages import exposed
from mofi_lightning.types import InputError, Vocabulary

_THUMBNAIL = 256
_MOST_OF_A_TEXT, _MOST_OF_A_KEY, _MOST_OF_A_NAME, _MOST_LABELS = 400, 120, 80, 12


def row_html(reader: ShardReader, index: int, broken: dict[int, str], vocabulary: Vocabulary | None) -> str:
    """One row, or why it cannot be shown, as HTML.

    Args:
        reader: of the data set.
        index: of the row.
        broken: what is wrong with chunks that cannot be read, by number.
        vocabulary: the entities; None where there are none.
    """
    chunk = int(np.searchsorted(reader.first_rows, index, side="right")) - 1
    place = f"row {index:,}"
    if chunk in broken:
        return _unreadable(place, broken[chunk])
    try:
        row = reader[index]
    except InputError as error:  # it is damaged, or its chunk cannot be fetched
        return _unreadable(place, str(error))
    image, about = picture(row.image, _THUMBNAIL)
    text = f"<q><bdi>{escape(exposed(row.text, _MOST_OF_A_TEXT))}</bdi></q>" if row.text else "<q>no text</q>"
    return (
        f"{image}<small><bdi>{escape(exposed(row.key, _MOST_OF_A_KEY))}</bdi></small>"
        f"<small>{place}, {about}</small>{text}{_labels(row, vocabulary)}"
    )


def _unreadable(place: str, reason: str) -> str:
    return (
        f'<div class="picture bad">this row cannot be read</div><small>{place}</small>'
        f'<span class="bad">{escape(exposed(reason, _MOST_OF_A_TEXT))}</span>'
    )


def _labels(row: Row, vocabulary: Vocabulary | None) -> str:
    labels = []
    for entity, score in list(zip(row.entities, row.scores, strict=False))[:_MOST_LABELS]:
        if vocabulary is not None and 0 <= entity < len(vocabulary):
            name = exposed(vocabulary.names[entity], _MOST_OF_A_NAME)
            labels.append(f"<li><bdi>{escape(name)}</bdi> <b>{score:.3f}</b></li>")
        else:
            labels.append(f'<li class="bad">class id {entity} is not in the vocabulary</li>')
    if (more := len(row.entities) - _MOST_LABELS) > 0:
        labels.append(f"<li>{more:,} more</li>")
    return f'<ul class="labels">{"".join(labels)}</ul>' if labels else ""
