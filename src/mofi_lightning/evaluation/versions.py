"""Versions of the libraries that numbers depend on, for the names of caches and beside results."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# what makes an embedding of a file
EMBEDDING = ("mofi-lightning", "torch", "torchvision", "pillow", "timm", "transformers", "open-clip-torch")
# what makes a number of embeddings too
MEASURING = (*EMBEDDING, "numpy", "scipy", "scikit-learn")


def installed(libraries: tuple[str, ...]) -> dict[str, str]:
    """Version of each of `libraries` that is installed."""
    found: dict[str, str] = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
