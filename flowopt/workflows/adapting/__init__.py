"""The steps of ``adapt``: judge, choose, swap, recover, compare."""
