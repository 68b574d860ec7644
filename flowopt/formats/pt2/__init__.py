"""Archives of ``torch.export``: checked part by part, and written down again in a clean form."""
