"""What was decided at a site."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Applied:
    """A pass fired at a site.

    Attributes:
        site: name of the anchor node, stable across runs of the same capture.
        module: dotted path of the module that the anchor came from, or empty.
        source: the user's source line, ``file:line: code``, or empty.
        summary: what was done, in words.
    """

    site: str
    module: str
    source: str
    summary: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pass did not fire at a site.

    Attributes:
        site: name of the anchor node.
        module: dotted path of the module that the anchor came from, or empty.
        source: the user's source line, or empty.
        code: one word of the vocabulary in ``flowopt.rewrite.codes``.
        message: the guard that failed, with the names and values of this site.
        node: the node that stood in the way; the anchor when no other did.
    """

    site: str
    module: str
    source: str
    code: str
    message: str
    node: str
