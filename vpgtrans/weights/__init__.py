"""Model files on disk: where they are, what is inside, one tensor at a time, never a whole model."""
