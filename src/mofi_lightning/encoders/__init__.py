"""From batches to embeddings: image and text encoders, their preprocessing and the `DualEncoder`."""
