"""torch.fx building blocks that know nothing of programs, passes or verification."""
