"""How much a file may ask for before it is refused."""

import dataclasses
from dataclasses import dataclass

from flowopt.errors import UserError

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What loading one file may cost. Every figure can be raised: ``--limit NAME=VALUE``, ``Limits(NAME=VALUE)``.

    Attributes:
        memory: bytes of writable memory that the checking process may use beside the mapped file; 0: 80 % of the
            machine's (or of its control group's).
        seconds: CPU time of the checking process.
        json: bytes of a graph's JSON text.
        nodes: operators in a graph, its subgraphs included.
        members: entries of a zip archive.
        depth: nesting of JSON, of messages and of subgraphs.
    """

    memory: int = 0
    seconds: int = 300
    json: int = 256 * MEBIBYTE
    nodes: int = 1_000_000
    members: int = 10_000
    depth: int = 200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(f"the limit {field.name} is {getattr(self, field.name)}: it cannot be negative")


DEFAULT_LIMITS = Limits()
