"""The same placement in other engines' words."""
