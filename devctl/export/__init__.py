"""The same placement in other engines' words: one pure module an engine."""
