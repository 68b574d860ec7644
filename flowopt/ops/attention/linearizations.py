"""The stand-ins for softmax attention by name."""

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.ops.attention.chunk_hybrid_attention import ChunkHybridAttention
from flowopt.ops.attention.combiner_attention import CombinerAttention
from flowopt.ops.attention.cosformer_features import CosformerFeatures
from flowopt.ops.attention.elu_features import EluFeatures
from flowopt.ops.attention.favor_features import FavorFeatures
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.flow_attention import FlowAttention
from flowopt.ops.attention.hedgehog_features import HedgehogFeatures
from flowopt.ops.attention.hybrid_window_attention import HybridWindowAttention
from flowopt.ops.attention.linear_attention import LinearAttention
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm
from flowopt.ops.attention.mean_attention import MeanAttention
from flowopt.ops.attention.relu_features import ReluFeatures
from flowopt.ops.attention.t2r_features import T2rFeatures


def _with_features(feature_map: Callable[..., FeatureMap]) -> Callable[..., LinearForm]:
    """A maker of linear attention, whose own options are those of its feature map."""

    def make(shape: AttentionShape, *, form: Form = "chunked", chunk: int = 64, **options: Any) -> LinearAttention:
        return LinearAttention(shape, feature_map=feature_map(shape, **options), form=form, chunk=chunk)

    known = [p for p in signature(make).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in list(signature(feature_map).parameters.values())[1:]]
    make.__signature__ = Signature([*known, *own])  # type: ignore[attr-defined]  # what inspect.signature looks for
    return make


LINEARIZATIONS: Final[Mapping[str, Callable[..., LinearForm]]] = {
    "mean": MeanAttention,
    "elu": _with_features(EluFeatures),
    "relu": _with_features(ReluFeatures),
    "favor": _with_features(FavorFeatures),
    "cosformer": _with_features(CosformerFeatures),
    "hedgehog": _with_features(HedgehogFeatures),
    "t2r": _with_features(T2rFeatures),
    "flow": FlowAttention,
    "hybrid": HybridWindowAttention,
    "chunk-hybrid": ChunkHybridAttention,
    "combiner": CombinerAttention,
}
"""Makers: called with an ``AttentionShape``, and with options of their own by keyword."""

STEPPED: Final = ("mean", "elu", "relu", "favor", "cosformer", "hedgehog", "t2r", "flow")
"""Those whose causal ``parallel`` form ``flowopt.recurrence.step_program`` takes apart: all that they carry is sums."""


def linearization(name: str) -> Callable[..., LinearForm]:
    """The maker of a name.

    Raises:
        UserError: there is none.
    """
    if name not in LINEARIZATIONS:
        known = f"one of {', '.join(LINEARIZATIONS)}"
        hint = nearest(name, LINEARIZATIONS, otherwise="")
        raise UserError(f"{name!r} is no linear attention", hint=f"{hint} {known}" if hint.endswith("?") else known)
    return LINEARIZATIONS[name]


def options_of(name: str) -> tuple[str, ...]:
    """The options that the maker of a name takes beside the form.

    Raises:
        UserError: there is none.
    """
    return tuple(option for option in list(signature(linearization(name)).parameters)[1:] if option != "form")
