"""Data about model types: how each lays out its config and its tensors."""
