"""Quantised models: what their weights take, by arithmetic."""
