"""The best placement, exactly."""
