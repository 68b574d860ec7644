"""``flowopt bench``: an artifact's time beside that of others, with spread and intervals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_text
from flowopt.cli.loading import LoadOptions, load_model, load_options
from flowopt.cli.options import Debug, Dynamic, Eval, Factory, Inputs, Json, Limit, Shape, TrustOption
from flowopt.cli.parsing import parse_sizes
from flowopt.errors import ModelNotFound, UserError
from flowopt.runtime.layout import TVM_MODEL

if TYPE_CHECKING:
    from flowopt.program.program import Program

_DEFAULT_VS = ("eager", "ort")


def bench(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARTIFACT...",
            show_default=False,
            help="Folders that optimize wrote; ratios are of the first. None are needed with --tune.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            show_default=False,
            help="What they were made of, a file or a factory. It gives ids, peaks, and what --vs is made of.",
        ),
    ] = None,
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs",
            metavar="NAME,...",
            show_default=False,
            help="Competitors: eager, compile, ort, ort-transformers, onnxslim, onnxsim, onnxscript, openvino; or all, "
            "or none. By default, with --reference: eager,ort.",
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="NAME=SIZE,...",
            show_default=False,
            help="Sizes of the free dimensions, as batch=1,sequence=32. Repeatable; else batch 1, 128 of the others.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, show_default=False, help="Of every contender; else one per CPU."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", min=0.0, help="After which the second run of a cell ends.")
    ] = 180.0,
    width: Annotated[
        float, typer.Option("--width", metavar="W", min=0.0, help="Of a ratio's 95 % interval, at which it ends.")
    ] = 0.06,
    json: Json = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", show_default=False, help="Write the result as a Markdown table."),
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(
            "--tune",
            metavar="FILE",
            show_default=False,
            help="Measure the choices of passes on --reference, for optimize --tuned FILE.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="DIR", show_default=False, help="Keep what competitors make, to use it again."
        ),
    ] = None,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    shape: Shape = None,
    inputs: Inputs = None,
    factory: Factory = None,
    trust: TrustOption = "data",
    limit: Limit = None,
    debug: Debug = False,
) -> None:
    """Time artifacts beside each other and beside what others make of the same model.

    Every contender runs in a process of its own, and they take turns. A first run chooses the fastest competitor; a
    second one measures the ratio to it, until its 95 % interval is narrow enough. Competitors need
    pip install "flowopt[bench,cpu]".

    Exit codes: 0 measured, 2 usage, 3 the first artifact does not run at these sizes, 66 no such artifact or model,
    69 a competitor is not installed, 73 cannot write; others as for optimize.

    \b
    Examples:
      flowopt bench out --reference my_model:factory --at batch=1 --at batch=8
      flowopt bench --reference my_model:factory --tune tuned.json
    """
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    sizes = [parse_sizes(text) for text in at or []]
    folders = list(artifacts or [])
    _require_complete(folders, reference, vs, tune, options)
    for path, option in ((json, "--json"), (markdown, "--markdown"), (tune, "--tune")):
        require_writable(path, option)
    competitors = _competitors(vs, reference if folders else None)

    from flowopt.cli.render import progress
    from flowopt.cli.render_bench import render_bench, render_tuned
    from flowopt.measuring.rounds import Plan
    from flowopt.report.bench_markdown import bench_markdown
    from flowopt.report.to_json import to_json
    from flowopt.workflows.bench import bench as run
    from flowopt.workflows.tune import tune as measured_choices

    report = None
    with progress() as show:
        program = _loaded(reference, options, show)
        tuned = None
        if tune is not None and program is not None:
            tuned = measured_choices(program, threads=threads, on_progress=show)
            tuned.save(tune)
        if folders:
            report = run(
                folders,
                reference=program,
                factory=_own_factory(reference, options),
                vs=competitors,
                sizes=sizes,
                threads=threads,
                plan=Plan(budget=seconds, width=width),
                folder=folder,
                trust=options.trust,
                on_progress=show,
            )
    if report is not None and markdown is not None:
        write_text(markdown, bench_markdown(report), "--markdown")
    if json is not None:
        write_text(json, to_json(report if report is not None else tuned), "--json")
    if json != STDOUT:
        if report is not None:
            render_bench(report)
        if tuned is not None:
            render_tuned(tuned, str(tune))


def _require_complete(
    folders: list[str], reference: str | None, vs: str | None, tune: Path | None, options: LoadOptions
) -> None:
    if tune is not None and reference is None:
        raise UserError("--tune measures the model itself", hint="give it with --reference MODEL")
    if not folders and tune is None:
        raise UserError("missing argument 'ARTIFACT...'", hint="flowopt bench --help")
    if tune == STDOUT:
        raise UserError("--tune writes a file", hint="such as --tune tuned.json")
    # Artifacts that are machine code need --trust code, whether or not there is a reference.
    has_library = any((Path(folder) / TVM_MODEL).exists() for folder in folders)
    of_reference = (replace(options, trust="data") if has_library else options).words
    if reference is None and of_reference:
        raise UserError(f"{of_reference[0]} says how --reference is loaded, and there is none", hint="leave it out")
    if vs is not None and not folders:
        raise UserError("--vs compares an artifact, and there is none", hint="flowopt bench ARTIFACT --vs ...")
    for path in folders:
        if not Path(path).exists():
            raise ModelNotFound(f"no artifact at {path}", hint=f"flowopt optimize MODEL -o {path}")


def _competitors(vs: str | None, reference: str | None) -> tuple[str, ...]:
    """Names, each of which is known and installed."""
    from flowopt.measuring.competitors import COMPETITORS, require_known

    names: tuple[str, ...]
    if vs is None:
        names = _DEFAULT_VS if reference is not None else ()
    elif vs in ("all", "none"):
        names = tuple(COMPETITORS) if vs == "all" else ()
    else:
        names = tuple(dict.fromkeys(name.strip() for name in vs.split(",")))
    require_known(names)
    if names and reference is None:
        raise UserError(f"--vs {vs} needs the model itself", hint="give it with --reference MODEL")
    return names


def _loaded(reference: str | None, options: LoadOptions, show: Callable[[str], None]) -> "Program | None":
    if reference is None:
        return None
    show(f"loading {reference}")
    return load_model(reference, options)


def _own_factory(reference: str | None, options: LoadOptions) -> str | None:
    """The factory, where what it returns was captured as it stands."""
    if reference is None or Path(reference).exists() or ":" not in reference or options.capture_words:
        return None
    return reference
