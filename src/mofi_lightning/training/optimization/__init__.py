"""Optimizers, schedules, and what happens to gradients and weights in a step."""
