import pytest
import torch

from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.errors import UserError
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.text import parse_pass, parse_pipeline
from flowopt.workflows.pipelines import Pipeline
from tests.rewrite.passes import DropDoubleRelu


class TestPipelines:
    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_is_its_passes(self, name: str) -> None:
        assert [p.text() for p in parse_pipeline(name)] == list(PRESETS[name])

    def test_a_list_runs_after_canonicalize(self) -> None:
        assert [p.text() for p in parse_pipeline("fold-norm-affine, fold-batch-norm,")] == [
            "canonicalize-aten",
            "fold-norm-affine",
            "fold-batch-norm",
        ]

    @pytest.mark.parametrize("text", ["canonicalize-aten,fold-batch-norm", " canonicalize-aten , fold-batch-norm"])
    def test_canonicalize_is_not_added_twice(self, text: str) -> None:
        assert [p.text() for p in parse_pipeline(text)] == ["canonicalize-aten", "fold-batch-norm"]

    @pytest.mark.parametrize("text", ["exact", "none", "fold-batch-norm:min_variance=1e-06,fold-norm-affine"])
    def test_the_text_form_parses_back(self, text: str) -> None:
        pipeline = Pipeline(text)
        assert Pipeline(pipeline.text()).passes == pipeline.passes

    def test_skipped_passes_are_left_out(self) -> None:
        whole = [p.text() for p in parse_pipeline("exact")]
        left = [p.text() for p in parse_pipeline("exact", skip=["fold-batch-norm"])]
        assert "fold-batch-norm" in whole and left == [text for text in whole if text != "fold-batch-norm"]
        assert [p.text() for p in parse_pipeline("fold-batch-norm:min_variance=0.5", skip=["fold-batch-norm"])] == [
            "canonicalize-aten"
        ]
        assert parse_pipeline("none", skip=["canonicalize-aten"]) == []

    def test_a_misspelled_skip_is_an_error(self) -> None:
        with pytest.raises(UserError, match="no pass 'fold-batchnorm'") as caught:
            parse_pipeline("exact", skip=["fold-batchnorm"])
        assert "fold-batch-norm" in caught.value.hint

    @pytest.mark.parametrize("text", ["", ",", " , "])
    def test_an_empty_list_is_an_error(self, text: str) -> None:
        with pytest.raises(UserError, match="names no pass") as caught:
            parse_pipeline(text)
        assert "exact" in caught.value.hint

    def test_an_unknown_preset_or_pass_names_the_nearest(self) -> None:
        with pytest.raises(UserError, match="no pass 'fold-normaffine'") as caught:
            parse_pipeline("fold-batch-norm,fold-normaffine")
        assert "fold-norm-affine" in caught.value.hint

    def test_names_and_objects_mix(self) -> None:
        pipeline = Pipeline(["fold-batch-norm:min_variance=0.5", DropDoubleRelu()], skip=["canonicalize-aten"])
        assert pipeline.text() == "fold-batch-norm:min_variance=0.5,drop-double-relu"
        assert repr(pipeline) == f"Pipeline({pipeline.text()!r})"

    def test_something_else_is_an_error(self) -> None:
        with pytest.raises(UserError, match="is no pass"):
            Pipeline([DropDoubleRelu])  # type: ignore[list-item]  # the mistake


class TestOptions:
    def test_are_converted_to_the_type_of_their_default(self) -> None:
        assert parse_pass("fold-batch-norm:min_variance=1e-3") == FoldBatchNorm(min_variance=1e-3)

    def test_defaults_are_left_out_of_the_text(self) -> None:
        assert FoldBatchNorm().text() == "fold-batch-norm"
        assert FoldBatchNorm(min_variance=0.25).text() == "fold-batch-norm:min_variance=0.25"

    def test_what_python_alone_gives_is_no_option_of_the_text(self) -> None:
        choice = MeasuredMerge("linear", LinearGroup((2, 3), (4, 5), torch.float32, has_bias=False), True, 2.0)
        assert MergeParallelLinears(min_gain=1.5, measured=(choice,)).text() == "merge-parallel-linears:min_gain=1.5"
        with pytest.raises(UserError, match="has no option 'measured'") as caught:
            parse_pass("merge-parallel-linears:measured=1")
        assert caught.value.hint == "options: min_gain, max_growth, copies"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fold-batch-norm:variance=1", "fold-batch-norm has no option 'variance'"),
            ("fold-norm-affine:level=1", "fold-norm-affine has no option 'level'"),
            ("fold-batch-norm:min_variance", "fold-batch-norm:min_variance needs a value"),
            ("fold-batch-norm:min_variance=small", "min_variance='small' must be float"),
            ("fold-batch-norm:min_variance=", "min_variance='' must be float"),
        ],
    )
    def test_unknown_options_and_values_are_errors(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            parse_pass(text)
        assert caught.value.exit_code == 2

    def test_what_needs_measurements_points_to_adapt(self) -> None:
        with pytest.raises(UserError, match="swap-norm changes the model by what is measured on data") as caught:
            parse_pipeline("fold-batch-norm,swap-norm:to=power")
        assert "flowopt adapt MODEL --swap-norm unified --data FILE" in caught.value.hint

    def test_the_options_that_exist_are_named(self) -> None:
        with pytest.raises(UserError) as caught:
            parse_pass("fold-batch-norm:variance=1")
        assert "min_variance" in caught.value.hint

    def test_options_are_frozen(self) -> None:
        with pytest.raises(AttributeError):
            FoldBatchNorm().min_variance = 1.0  # type: ignore[misc]  # the mistake
