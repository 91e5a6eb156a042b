"""How each model type lays out its config and its tensors."""
