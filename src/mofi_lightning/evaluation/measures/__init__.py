"""Pure functions of embeddings and labels, and their torchmetrics classes."""
