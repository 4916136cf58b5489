"""Which entities a knowledge base takes, and in what form: the one place where every reader's are checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from mofi_lightning.curation.knowledge_bases.base import Faults, shown
from mofi_lightning.sources.base import Entity, well_formed

# Wikidata allows 250 characters in a name; a longer text in its place is no name, and would slow down every
# search for names, which looks as far ahead as the longest one reaches
MOST_NAME = 250
MOST_ID = 250
MOST_DESCRIPTION = 5_000
# it is stored as float32
MOST_POPULARITY = float(np.finfo(np.float32).max)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def admitted(entities: Iterable[Entity], faults: Faults) -> Iterator[Entity]:
    """The `entities` that have an id and a name, each in the form in which it is stored.

    - An id has at most 250 characters, all printable; an entity with another, or without one, is left out.
    - A name has at most 250 characters. An entity without a name, or with a longer one, is left out; of the
      aliases, only those that are longer.
    - Control characters and line ends become spaces, lone surrogates U+FFFD.
    - A description is cut after 5,000 characters. A popularity that is negative, above
      3.4e38 or no number counts as 0.

    Args:
        entities: read once.
        faults: counts what was left out or changed for worse.
    """
    for entity in entities:
        if not _is_id(entity.id, faults):
            continue
        where = f"entity {entity.id}"
        name = _clean(entity.name)
        if not name:
            faults.add("no name", where)
            continue
        if len(name) > MOST_NAME:
            faults.add(f"name longer than {MOST_NAME} characters", where, name)
            continue
        aliases = tuple(dict.fromkeys(filter(None, map(_clean, entity.aliases))))
        if any(len(alias) > MOST_NAME for alias in aliases):
            for alias in aliases:
                if len(alias) > MOST_NAME:
                    faults.add(f"alias longer than {MOST_NAME} characters", where, alias)
            aliases = tuple(alias for alias in aliases if len(alias) <= MOST_NAME)
        if len(entity.description) > MOST_DESCRIPTION:
            faults.add(f"description cut after {MOST_DESCRIPTION:,} characters", where)
        popularity = entity.popularity
        if not 0 <= popularity <= MOST_POPULARITY:
            faults.add("popularity is negative, above 3.4e38 or no number", where, str(popularity))
            popularity = 0.0
        description = _clean(entity.description[:MOST_DESCRIPTION])
        types = tuple(type for type in entity.types if _is_printable(type))
        yield Entity(entity.id, name, aliases, description, float(popularity), types)


def _is_id(id: str, faults: Faults) -> bool:
    if not id:
        faults.add("no id")
    elif len(id) > MOST_ID:
        faults.add(f"id longer than {MOST_ID} characters", f"entity {shown(id)}")
    elif not id.isprintable():
        faults.add("id with unprintable characters", f"entity {shown(id)}")
    else:
        return True
    return False


def _is_printable(id: str) -> bool:
    return 0 < len(id) <= MOST_ID and id.isprintable()


def _clean(text: str) -> str:
    # isprintable is fast and true for nearly every text; joiners and the like are unprintable, but stay
    return text.strip() if text.isprintable() else well_formed(_CONTROL.sub(" ", text)).strip()
