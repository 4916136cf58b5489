"""The stages of curation: each writes one file for a part of the corpus, or sums over the parts."""
