"""auto, balanced, balanced_low_0 and sequential: what transformers would do."""
