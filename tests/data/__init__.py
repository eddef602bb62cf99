"""Tests of image-text data: formats, prompts and labels, order, batches."""
