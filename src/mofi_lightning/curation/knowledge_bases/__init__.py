"""Where entities come from: readers of the files in which knowledge bases are handed round."""
