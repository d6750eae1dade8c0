"""What proves that a load is what the map says."""
