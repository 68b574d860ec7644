"""A captured model and the ways to obtain one."""
