"""Latency of runtimes beside each other: processes of their own, alternated, with spread and intervals."""
