"""What a training run will need, computed before it is started."""
