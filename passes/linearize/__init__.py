"""Passes that put attention of linear cost in the place of softmax attention."""
