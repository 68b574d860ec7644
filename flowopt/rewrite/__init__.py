"""Passes, sites and the driver that applies one pass to one program."""

from flowopt.rewrite.base import Exactness, RewritePass
from flowopt.rewrite.edit import Edit
from flowopt.rewrite.site import Site

__all__ = ["Edit", "Exactness", "RewritePass", "Site"]
