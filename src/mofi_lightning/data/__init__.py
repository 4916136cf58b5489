"""Entities to batches: data sets on disk, texts, augmentation, mixing, the datamodule."""
