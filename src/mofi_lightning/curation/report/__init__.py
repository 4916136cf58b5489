"""What a curation did: counts after every step, and a page to look at."""
