"""Does it run there: load on a map, run a smoke inference, prove and measure. Imports torch, lazily."""
