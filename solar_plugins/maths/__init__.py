"""Synthetic mathematics data: a served model rephrases and solves problems, and every answer is checked."""
