"""Many models on many data sets: running, recording, tables."""
