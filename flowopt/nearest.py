"""What a misspelled name may have meant."""

from collections.abc import Iterable

_FEW = 12


def nearest(name: str, known: Iterable[str], *, otherwise: str = "known are") -> str:
    """A hint: the known names nearest to ``name``; where none is near, ``otherwise`` and some of them."""
    # Only an error needs it, and --help is to be quick.
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"{otherwise} {', '.join(names[:_FEW])}{', ...' if len(names) > _FEW else ''}"
