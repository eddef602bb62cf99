"""Anatomy of a vision-language model: its parts, its cut points, and its assembly with a new LLM."""
