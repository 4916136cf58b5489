"""From texts to candidates: mentions, and the entities that they may mean."""
