"""The float64 oracle, the gates around it and the instrument that judges every pass."""
