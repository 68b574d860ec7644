"""Silence for transformers."""


def quiet_transformers() -> None:
    """No advice and no progress bars: they would drown a failing test's own output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
