"""Curation: noisy image + alt-text pairs become images with entities (Image-to-Entities)."""
