"""Named pipelines. Presets own the order: canonical spellings first, then folds that only remove work."""

from typing import Final

PRESETS: Final[dict[str, tuple[str, ...]]] = {
    "exact": (
        "canonicalize-aten",
        "eliminate-no-ops",
        "eliminate-common-subexpressions",
        "simplify-masks",
        "simplify-shapes",
        "hoist-selections",
        "fold-ssm-kernel",
        "fold-constants",
        "fold-parametrizations",
        "recognize-batch-channel-norm",
        "recognize-rms-norm",
        "recognize-layer-norm",
        "fold-batch-norm",
        "fold-scale",
        "fold-norm-affine",
        "absorb-post-norm",
        "fold-norm-mean",
        "fold-linear-chain",
        "fold-value-bias",
        "eliminate-key-bias",
        "merge-parallel-linears",
    ),
    "none": ("canonicalize-aten",),
}

DEFAULT_PRESET: Final = "exact"
