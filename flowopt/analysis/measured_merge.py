"""What a measurement said of the linear layers of one input."""

from dataclasses import dataclass

from flowopt.analysis.linear_group import LinearGroup


@dataclass(frozen=True, slots=True)
class MeasuredMerge:
    """A choice for one group of linear layers, which a build follows instead of the cost model.

    Attributes:
        site: name of the first layer's node, in the graph that the merging pass sees.
        group: what was measured. A choice for other sizes is none.
        merge: whether the layers become one.
        gain: time of the separate layers divided by that of the merged one.
    """

    site: str
    group: LinearGroup
    merge: bool
    gain: float
