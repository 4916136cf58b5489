"""What a run logs about itself."""
