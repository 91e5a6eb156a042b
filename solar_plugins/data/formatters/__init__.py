"""Formatters: from a row of a dataset to messages or to a preference pair."""
