"""What is in a model, or in an artifact: counted, not judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowopt.report.stored import StoredReport


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """Stored tensors of one dtype; those that share memory count once."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PassFindings:
    """What one pass would do: sites where it fires, and the codes of the others, most frequent first."""

    name: str
    exactness: str
    applied: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StreamFindings:
    """One residual stream.

    Attributes:
        first: name of its first value.
        features: size of each vector.
        placement: where its norms stand: ``pre``, ``post``, ``peri`` or ``mixed``.
        is_parallel: several branches write between two norms, as attention beside a feed-forward network.
        additions: operators that add inside of it.
        norms: operator to number of norms that read it.
        writers: operator to number of values that are added to it from outside; ``stored`` for
            stored tensors, ``input`` for inputs of the model.
        taps: names of other operators that read it; ``output`` for the model's.
    """

    first: str
    features: int
    placement: str
    is_parallel: bool
    additions: int
    norms: Mapping[str, int]
    writers: Mapping[str, int]
    taps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInspection:
    """What is in a captured model.

    Attributes:
        source: class or file.
        source_sha256: digest of the file; None where it is none.
        trust: what the file was allowed to do.
        torch_version: that captured it.
        interface: inputs and outputs with dtype, shape and state; ranges of the free dimensions.
        captured: size of every free dimension in the example inputs.
        state: inputs whose default is stored, and which have an output for their next value.
        census: operator to number of calls.
        stored: stored tensors by dtype.
        parameter_bytes: bytes of all of them.
        flops: floating point operations of one run at captured sizes; None: sizes depend on data.
        activation_bytes: the most memory that values take at once in such a run.
        pipeline: passes that were looked at, in text form.
        passes: what each would do; nothing is verified.
        streams: residual streams that norms read; None: not asked for.
    """

    source: str
    source_sha256: str | None
    trust: str | None
    torch_version: str
    interface: Mapping[str, Any]
    captured: Mapping[str, int]
    state: tuple[str, ...]
    census: Mapping[str, int]
    stored: tuple[StoredTensors, ...]
    parameter_bytes: int
    flops: int | None
    activation_bytes: int
    pipeline: str
    passes: tuple[PassFindings, ...]
    streams: tuple[StreamFindings, ...] | None = None
    kind: str = "model"


@dataclass(frozen=True, slots=True)
class ArtifactInspection:
    """What is in an artifact's files; nothing of it was run.

    Attributes:
        model: name of the model file.
        model_sha256: digest of that file.
        files: bytes of the model file and of the weight files that it reads.
        census: operator to number of nodes, those of inner graphs and functions too.
        stored: stored tensors by dtype.
        weight_bytes: bytes of all of them.
        opsets: version by domain; empty for a ``.pt2``.
        writer: program and version that wrote the file; empty where it does not say.
        interface: inputs and outputs as flowopt recorded them in the file; empty for a file of another writer.
        report: the report that belongs to exactly this model; None: there is none, or none that can be read.
        notes: what is missing, and why.
    """

    model: str
    model_sha256: str
    files: Mapping[str, int]
    census: Mapping[str, int]
    stored: tuple[StoredTensors, ...]
    weight_bytes: int
    opsets: Mapping[str, int] = field(default_factory=dict)
    writer: str = ""
    interface: Mapping[str, Any] = field(default_factory=dict)
    report: StoredReport | None = None
    notes: tuple[str, ...] = ()
    kind: str = "artifact"
