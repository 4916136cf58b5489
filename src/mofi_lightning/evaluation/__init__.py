"""Measures of a representation, each a pure function with its torchmetrics class, and what runs them."""
