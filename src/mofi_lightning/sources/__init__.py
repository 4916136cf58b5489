"""Where image + alt-text pairs come from."""
