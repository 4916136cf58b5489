"""What the objectives cost, in time and memory, beside their peers."""
