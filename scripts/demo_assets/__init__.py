"""What ``build_demo_assets.py`` is made of: a small world in words, two LLMs, a source VLM."""
