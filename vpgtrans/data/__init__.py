"""Image-text data: formats, prompts and labels, batches."""
