"""Recovery after approximate rewrites: calibration, regression, matching and distillation."""
