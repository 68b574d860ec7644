"""Every rewrite alone, at its own boundary."""
