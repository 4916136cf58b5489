"""What others install, by name: `class_path: mofi_lightning.plugins.siglip`.

Any entry point of the group `mofi_lightning.plugins` is an attribute here, imported when it is first used.
The module defines no public function, so that no plugin's name can collide with one; `entry_points` has the
functions that list and resolve plugins.
"""

from __future__ import annotations

from mofi_lightning import entry_points as _entry_points


def __getattr__(name: str) -> type:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return _entry_points.load(name)
    except _entry_points.InputError as error:
        raise AttributeError(str(error)) from error


def __dir__() -> list[str]:
    return _entry_points.names()
