"""Costs of evaluation."""
