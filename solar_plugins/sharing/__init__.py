"""Recipes that people share: fetch, check, share, reproduce, compare and show them."""
