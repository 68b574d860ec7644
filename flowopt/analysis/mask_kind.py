"""What a mask of attention hides: padding, what comes later, both; or why it is none of these."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.analysis.captured import Captured
from flowopt.analysis.mask_source import MaskSource, mask_source
from flowopt.analysis.mask_trials import Trial, longest_window, mask_trials, polarities
from flowopt.ir.metadata import recorded_tensor
from flowopt.ops.attention.attention_mask import HIDDEN_SCORE

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class MaskKind:
    """What a mask is.

    Attributes:
        is_causal: it hides what comes later.
        has_padding: it hides keys from all queries.
        code: why it is none of these kinds; empty where it is one.
        message: the same in words.
    """

    is_causal: bool = False
    has_padding: bool = False
    code: str = ""
    message: str = ""


def mask_kind(
    program: Captured,
    mask: fx.Node,
    query_length: Size,
    key_length: Size,
    *,
    is_added: bool,
    is_inverted: bool = False,
    has_heads: bool = True,
) -> MaskKind:
    """The kind of a mask, by its values for inputs with and without padding at several sizes.

    A key is real where the last query sees it; that has to be where the input is no padding. Every query has to see all
    real keys, or all up to its own place; of padded inputs only queries count whose own key is real.

    Args:
        program: whose mask it is.
        mask: truth values, or numbers that are added to the scores.
        query_length, key_length: as recorded; the mask may have one row or one column for all.
        is_added: it is numbers.
        is_inverted: it is true where a key is hidden.
        has_heads: the third axis from behind is that of heads, if there is one.
    """
    source = mask_source(program, mask)
    if source.features or source.is_computed:
        computed_from = ", ".join(source.features) or "what the model computes"
        code = "additive-bias" if is_added else "arbitrary-mask"
        return MaskKind(code=code, message=f"{mask.name} depends on {computed_from}, which is no mask")
    window = longest_window(program, source)
    kinds: list[MaskKind] = []
    for flipped in polarities(program, source):
        found = _Findings(source, is_added=is_added, is_inverted=is_inverted, has_heads=has_heads)
        for trial in mask_trials(program, source, flipped):
            lengths = [program.concrete_size(size, trial.sizes) for size in (query_length, key_length)]
            sizes = zip(reversed(trial.value.shape), reversed(lengths), strict=False)
            if any(had not in (1, size) for had, size in sizes):
                # A stored tensor was too short.
                continue
            found.add(trial, lengths)
            if found.code:
                break
        kinds.append(found.kind())
        if not kinds[-1].code and window is not None:
            message = f"{mask.name} compares positions with {window}, and the model takes as many"
            return MaskKind(code="arbitrary-mask", message=message)
        if not kinds[-1].code:
            return kinds[-1]
    own = _own_pairs(program, source, (query_length, key_length))
    if kinds[0].code == "arbitrary-mask" and own:
        return MaskKind(code="arbitrary-mask", message=own)
    return kinds[0]


def _own_pairs(program: Captured, source: MaskSource, lengths: tuple[Size, Size]) -> str:
    """In words, that an input holds a number for every pair of query and key; empty where none does."""
    for node in source.inputs:
        value = recorded_tensor(node)
        if value is None or [*map(str, value.shape[-2:])] != [*map(str, lengths)]:
            continue
        example = program.example.get(node.name)
        seen = ""
        if example is not None:
            visible = example > HIDDEN_SCORE if example.is_floating_point() else example.bool()
            seen = "causal in the example and " if bool((visible == torch.ones_like(visible).tril()).all()) else ""
        return f"{node.name} is an input of its own for every query and key, {seen}anything at run time"
    return ""


@final
class _Findings:
    """What is left of the possible kinds after some trials."""

    def __init__(self, source: MaskSource, *, is_added: bool, is_inverted: bool, has_heads: bool) -> None:
        self._source = source
        self._is_added, self._is_inverted, self._has_heads = is_added, is_inverted, has_heads
        self._is_tried = self._hides_keys = False
        self._may_be_whole = self._may_be_causal = True
        self._bias = ("", "")
        self.code = self.message = ""

    def add(self, trial: Trial, lengths: list[int]) -> None:
        """One trial, of so many queries and keys."""
        # Padded inputs alone would leave open what padded queries see.
        self._is_tried |= not trial.is_padded
        value = trial.value
        if not self._is_added:
            self._add(_whole(value.bool() ^ self._is_inverted, lengths), trial)
        elif bool(((value > HIDDEN_SCORE) & (value != 0)).any()):
            self._bias = _bias(self._source, value, lengths[0])
            # Where there is padding, a bias has gaps, and is not what it is elsewhere.
            self.code, self.message = ("", "") if trial.is_padded else self._bias
        else:
            self._add(_whole(value > HIDDEN_SCORE, lengths), trial)

    def kind(self) -> MaskKind:
        """What the mask is by now."""
        name = self._source.mask.name
        code, message = (self.code, self.message) if self.code else self._bias
        if code:
            return MaskKind(code=code, message=f"{name} {message}")
        if not self._is_tried:
            return MaskKind(code="arbitrary-mask", message=f"{name} cannot be computed from masks and sizes alone")
        is_causal = self._may_be_causal and not self._may_be_whole
        return MaskKind(is_causal, self._hides_keys or bool(self._source.inputs))

    def _add(self, visible: Tensor, trial: Trial) -> None:
        """What is visible, (.., L, S)."""
        length, keys = visible.shape[-2:]
        real = visible[..., -1:, :]
        wanted = _shown_keys(visible, trial.shown)
        # Without knowing what was padding, none of the queries can be left out.
        is_known = trial.is_example or wanted is not None
        has_idle = trial.is_padded and length == keys and is_known
        counts = real.transpose(-1, -2) if has_idle else torch.ones_like(visible[..., :1])
        later = torch.ones(length, keys, dtype=torch.bool, device=visible.device).tril()
        self._may_be_whole &= _agree(visible, real, counts)
        self._may_be_causal &= length == keys and _agree(visible, real & later, counts)
        self._hides_keys |= not bool(real.all())
        if not bool(real.any(-1).all()):
            self.code, self.message = "arbitrary-mask", "hides everything from the last query of a padded input"
        elif self._has_heads and visible.dim() > 2 and not bool((visible == visible[..., :1, :, :]).all()):
            self.code, self.message = "arbitrary-mask", "differs from head to head"
        elif not (self._may_be_whole or self._may_be_causal):
            self.code, self.message = _why(visible)
        elif wanted is not None and not bool((real == wanted).all()):
            message = "hides keys of tokens that are no padding, or shows some that are: it tells tokens apart"
            self.code, self.message = "arbitrary-mask", message


def _shown_keys(visible: Tensor, patterns: tuple[Tensor, ...]) -> Tensor | None:
    """The keys that are no padding, (.., 1, S), like the last row of what is visible; None where no input tells."""
    found: Tensor | None = None
    for pattern in patterns:
        if pattern.shape[-1] != visible.shape[-1] or pattern.dim() not in (2, visible.dim()):
            continue
        keys = pattern[..., -1:, :]
        if pattern.dim() == 2 < visible.dim():
            keys = pattern.reshape(len(pattern), *(1,) * (visible.dim() - 2), -1)
        try:
            keys = keys.to(visible.device).expand_as(visible[..., -1:, :])
        except RuntimeError:
            continue
        found = keys if found is None else found & keys
    return found


def _agree(visible: Tensor, expected: Tensor, counts: Tensor) -> bool:
    return bool(((visible == expected) | ~counts).all())


def _whole(visible: Tensor, lengths: list[int]) -> Tensor:
    """(.., L, S), where a mask may have one row or one column for all."""
    at_least = visible.reshape((1,) * (2 - visible.dim()) + tuple(visible.shape))
    return at_least.expand(*at_least.shape[:-2], *lengths)


def _why(visible: Tensor) -> tuple[str, str]:
    """Code and words for a mask that is not of one kind."""
    length, keys = visible.shape[-2:]
    behind = torch.arange(length).unsqueeze(-1) - torch.arange(keys)
    behind = behind.to(visible.device)
    if length != keys:
        for shift in (0, length - keys):
            if bool((visible == (behind >= shift)).all()):
                return "axis-mismatch", f"hides what comes later, and there are {length} queries and {keys} keys"
    width = int(visible[..., -1, :].sum(-1).max())
    for band in ((behind >= 0) & (behind < width), behind.abs() < width):
        if bool((visible == band).all()):
            return "arbitrary-mask", f"is a sliding window of {width} keys"
    return "arbitrary-mask", "shows different queries different keys, and not those up to their own place"


def _bias(source: MaskSource, value: Tensor, queries: int) -> tuple[str, str]:
    """Code and words for a mask that adds something to the scores of visible keys."""
    if _is_linear(value, queries):
        return "alibi", "adds a multiple of the distance to the scores"
    if source.tables:
        return "relative-bias", f"adds to the scores what is stored in {', '.join(source.tables)}"
    return "additive-bias", "adds to the scores of visible keys"


def _is_linear(value: Tensor, queries: int) -> bool:
    """Whether along the keys up to a query's own place a bias grows by the same step everywhere, in every head."""
    bias = value.double()
    # One row for all queries is as good as the last query's.
    places = torch.arange(bias.shape[-2], device=bias.device) + (queries - bias.shape[-2])
    steps = bias[..., 1:] - bias[..., :-1]
    counts = (bias[..., 1:] > HIDDEN_SCORE) & (bias[..., :-1] > HIDDEN_SCORE)
    counts &= torch.arange(1, bias.shape[-1], device=bias.device) <= places.unsqueeze(-1)
    if counts.shape[-1] < 2 or not bool(counts.any()):
        return False
    nan = torch.where(counts, steps, torch.nan).flatten(-2)
    middle = nan.nanmedian(-1, keepdim=True).values
    largest = float(torch.where(bias > HIDDEN_SCORE, bias, 0.0).abs().max())
    # A bias of 30 in bfloat16 is off by up to 0.1.
    rounding = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    tolerance = 1e-4 * float(middle.nan_to_num().abs().max()) + 2 * rounding * largest
    is_even = bool(((nan - middle).abs().nan_to_num() <= tolerance).all())
    return is_even and bool((middle.nan_to_num() != 0).any())
