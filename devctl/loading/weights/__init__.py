"""From a device map to a model with its weights in place."""
