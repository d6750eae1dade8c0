"""What fits in engines other than transformers: how they share out an accelerator's memory."""
