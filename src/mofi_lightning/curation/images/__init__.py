"""The image check: how well images show what their texts name."""
