"""One training loop; stages are data."""
