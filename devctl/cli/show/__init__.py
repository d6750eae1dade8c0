"""Values to what people and programs read."""
