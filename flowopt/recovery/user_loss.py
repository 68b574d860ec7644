"""The user's own loss: ``package.module:function``."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from flowopt.errors import UserError
from flowopt.program.loading.imported import IMPORTED_NAME, called, imported_function

Outputs = Mapping[str, Tensor]
OutputLoss = Callable[[Outputs, Outputs, Mapping[str, Tensor]], Tensor]

LOSSES: Final = ("kl", "mse", "cosine")
_RETURNS: Final = "one number to be made small, a tensor made of the outputs"
_BRIEF: Final = "a loss of (outputs, teacher, extra): (outputs['logits'] - teacher['logits']).square().mean()"


def require_loss_name(text: str) -> None:
    """Refuse what is neither one of ``LOSSES`` nor such a name.

    Raises:
        UserError: it is none.
    """
    if text not in LOSSES and not IMPORTED_NAME.fullmatch(text):
        raise UserError(f"no loss {text!r}", hint=f"{', '.join(LOSSES)}, or package.module:function")


def user_loss(text: str) -> OutputLoss:
    """Import a loss. The current folder is searched too, as ``python -m`` does.

    The function is called with the student's outputs, the teacher's, and the arrays of the batch that are no inputs,
    each by name; it returns one number, a mean over the batch, that gradients can be taken of.

    Args:
        text: ``package.module:function``.

    Raises:
        ModelNotFound: no such module or function.
        MissingDependency: its module imports a package that is not installed.
        UserError: it is no such name; or, when it is called, it raises, or returns something else.
    """
    require_loss_name(text)
    function: Callable[..., Any] = imported_function(text, _RETURNS, _BRIEF)

    def loss(outputs: Outputs, teacher: Outputs, extra: Mapping[str, Tensor]) -> Tensor:
        found = called(text, lambda: function(outputs, teacher, extra))
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{text} returns {what}, not one number", hint="return a mean: loss.mean()")
        return found.reshape(())

    return loss
