"""The real run: real small LLMs, a real ViT and real pictures, from ordinary package registries."""
