"""Stock model folders that load without this package."""
