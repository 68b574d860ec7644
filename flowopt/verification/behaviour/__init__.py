"""How a candidate behaves beyond its numbers: repeated calls, memory, layouts, threads, batches."""
