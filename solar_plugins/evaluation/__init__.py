"""The six tasks by which the paper compares models, and their table."""
