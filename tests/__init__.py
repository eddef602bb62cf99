"""Tests mirror the package; ``tiny.py`` builds real, tiny models."""
