"""What a recovery does where nothing is said, from the command line, which reads this without torch, or from Python."""

from typing import Final, Literal

STEPS: Final = 500
LEARNING_RATE: Final = 3e-4
OPTIMIZER: Final[Literal["adamw"]] = "adamw"
LOSS: Final = "mse"
FEATURE_WEIGHT: Final = 0.1
SCHEDULE: Final[Literal["all"]] = "all"
SETTLE: Final = 1.0
PATIENCE: Final = 0
# Of a whole distillation: each runs both models on all that is kept to choose by.
EVALUATIONS: Final = 10
# The steps by which quality is won back, in order: after a swap of norms, and after attention was linearized.
RECOVER: Final = "ridge,distill"
RECOVER_ATTENTION: Final = "transfer,distill"
TRANSFER_STEPS: Final = 300
TRANSFER_LEARNING_RATE: Final = 1e-2
# Rank 0: all weights are trained, without low-rank adapters.
LORA_RANK: Final = 0
LORA_ALPHA: Final = 16.0
LORA_LAYERS: Final[Literal["attention"]] = "attention"
