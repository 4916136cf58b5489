"""Measures of a representation, each a pure function with its torchmetrics class, and what runs them.

In the order of the flow: `datasets` and `models` are what is compared, `embedding` makes vectors of images
and texts, `measures` makes numbers of vectors, `evaluators` do one kind of measurement each, `suite` runs
many and records them, `report` shows them.
"""
