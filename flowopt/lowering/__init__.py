"""Programs become files that a runtime executes."""
