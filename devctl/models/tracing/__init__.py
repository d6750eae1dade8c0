"""What a model holds beside its weights, found by running its code on fake tensors."""
