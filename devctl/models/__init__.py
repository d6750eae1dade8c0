"""What the model is: a MODEL argument, its config, and the tree of its modules."""
