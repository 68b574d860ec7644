"""Read-only facts about a graph."""
