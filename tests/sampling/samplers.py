"""Samplers written down on the spot, so that tests of folding depend on no solver."""

from flowopt.sampling import SamplerSpec, Trace


def euler(steps: int, *, scale: float = 1.0, start: float = 1.0) -> SamplerSpec:
    """From time 1 to 0."""
    trace = Trace()
    x = trace.start * start
    for i in range(steps):
        x = x - trace.evaluate(x, scale * (1 - i / steps)) / steps
    return trace.finished("euler", x)


def heun(steps: int) -> SamplerSpec:
    """Two evaluations per step, and two tensors of state."""
    trace = Trace()
    x, h = trace.start, 1 / steps
    for i in range(steps):
        t = 1 - i * h
        slope = trace.evaluate(x, t)
        x = x - h / 2 * (slope + trace.evaluate(x - h * slope, t - h))
    return trace.finished("heun", x)


def noisy(steps: int) -> SamplerSpec:
    """Noise before the first evaluation and behind every step but the last."""
    trace = Trace()
    x = 2.0 * trace.start + 0.5 * trace.draw()
    for i in range(steps):
        x = x - trace.evaluate(x / (1 + i), 1 - i / steps) / steps
        if i < steps - 1:
            x = x + 0.2 * trace.draw()
    return trace.finished("noisy", x)


def averaged(steps: int) -> SamplerSpec:
    """Two times per evaluation."""
    trace = Trace()
    x = trace.start
    for i in range(steps):
        x = x - trace.evaluate(x, 1 - i / steps, 1 / steps) / steps
    return trace.finished("averaged", x)
