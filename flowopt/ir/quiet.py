"""Silence for exporters and loaders that talk to people who did not call them."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

_NOISY = ("torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, torch's exporters and loaders and the ONNX packages say nothing: what matters is raised."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
