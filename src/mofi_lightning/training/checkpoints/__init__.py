"""Checkpoints: how they are written, read, found, looked at and exported."""
