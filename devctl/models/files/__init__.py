"""A model's files: found, fetched, and read without their weights."""
