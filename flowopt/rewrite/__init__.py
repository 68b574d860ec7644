"""Passes, sites and the driver that applies one pass to one program."""

from flowopt.rewrite.base import Exactness, RewritePass
from flowopt.rewrite.budget import Budget
from flowopt.rewrite.domain import Domain
from flowopt.rewrite.edit import Edit
from flowopt.rewrite.site import Site

__all__ = ["Budget", "Domain", "Edit", "Exactness", "RewritePass", "Site"]
