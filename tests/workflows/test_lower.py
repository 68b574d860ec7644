"""Fused operators are left out of a file where they change its numbers."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import flowopt
from flowopt.lowering.onnx import export
from tests.lowering.test_attention_layout import plain, program


def relu_before_attention(model: Any) -> None:
    """What a faulty rule would do."""
    import onnx_ir

    for node in list(model.graph):
        if node.op_type == "Attention":
            relu = onnx_ir.node("Relu", [node.inputs[0]])
            node.graph.insert_before(node, relu)
            node.replace_input_with(0, relu.outputs[0])


def test_a_file_whose_fused_operators_differ_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "fuse", relu_before_attention)
    result = flowopt.optimize(program(plain), target="cpu", folder=tmp_path / "artifact")
    assert result.report.outcome == "verified", result.verdict.reason
    assert [w for w in result.report.warnings if w.startswith("fused operators change this model's numbers")]
    nodes = onnx.load(str(tmp_path / "artifact" / "model.onnx"), load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["Attention"] == 1 and counts["Relu"] == 0
    assert result.report.census_lowered == dict(sorted(counts.items()))
    kinds = sorted(path.name.split(".")[0] for path in (tmp_path / "artifact").iterdir())
    assert kinds == ["model", "report", "weights"], "nothing is left of the file that differs"
