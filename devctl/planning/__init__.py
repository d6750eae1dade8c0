"""A question, put together: requests in, the model and the machine that they mean, and the answer as a frozen value."""
