"""The embedded demo: a transfer between two small LLMs on any machine."""
