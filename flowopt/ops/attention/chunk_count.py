"""How many chunks a sequence is cut into."""


def chunk_count(length: int, chunk: int) -> int:
    """ceil(L / chunk) + 1: the last one is all zeros, so that there are always two while torch traces."""
    return (length + 2 * chunk - 1) // chunk
