"""Alignment of two LLMs' embedding spaces, fused into the projector: pure tensors, no images."""
