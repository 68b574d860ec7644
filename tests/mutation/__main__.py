"""Judge kinds of mutants one by one.

    python -m tests.mutation KIND... [--program NAME] [--everywhere]

Prints one line per mutant: its gate and the finding, ``equal`` where it cannot be seen, ``MISSED`` otherwise. Without
kinds it runs all of them.
"""

import argparse
import sys

import torch

from tests.mutation.catalogue import KINDS
from tests.mutation.population import population
from tests.mutation.programs import PROGRAMS
from tests.mutation.score import Judge


def main() -> int:
    """Exit code 1 when a mutant is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Judge kinds of mutants.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="such as bias-dropped; all when none is named")
    parser.add_argument("--program", choices=list(PROGRAMS), help="mutate this program only")
    parser.add_argument("--everywhere", action="store_true", help="at every eligible node, not at some of them")
    options = parser.parse_args()
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}; kinds: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    missed = False
    for name in [options.program] if options.program else PROGRAMS:
        all_mutants = population(name, everywhere=options.everywhere)
        mutants = [m for m in all_mutants if not options.kinds or m.kind in options.kinds]
        judge = Judge(name) if mutants else None
        for mutant in mutants:
            assert judge is not None
            one = judge(mutant)
            missed |= not one.gate and not one.excuse
            print(one, flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
