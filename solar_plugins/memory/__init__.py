"""How much memory of each GPU the training of a recipe takes, by arithmetic."""
