"""Run a function in a process of its own, with limits."""
