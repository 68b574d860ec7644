"""Verify the right rewrites of some kinds, or of all, and print one line per pair.

python -m tests.mutation.right [KIND...]
"""

import argparse
import sys

from tests.mutation.right.kinds import KINDS
from tests.mutation.right.pairs import enumerated
from tests.mutation.right.score import Scored, score


def main() -> int:
    """Exit code 1 when a right rewrite is accused."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.right", description="Verify right rewrites.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all without one")
    names = parser.parse_args().kinds or list(KINDS)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}")
    found = score(enumerated(KINDS[name] for name in names), on_pair=_print)
    accused = [one for one in found if not one.is_kept]
    print(f"{len(accused)} of {len(found)} accused, {sum(one.seconds for one in found) / len(found):.2f} s per pair")
    for one in accused:
        print(f"  {one}")
    return int(bool(accused))


def _print(one: Scored) -> None:
    print(one, flush=True)


if __name__ == "__main__":
    sys.exit(main())
