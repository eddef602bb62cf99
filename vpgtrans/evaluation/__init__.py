"""Held-out measures: token loss, image gap, exact match, and the generated texts."""
