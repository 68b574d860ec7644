"""Running an artifact: one call for every target."""
