"""What curation costs: the parts of `benchmarks/curation.py`."""
