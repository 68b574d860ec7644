"""The worker process: opens one contender, and runs a burst whenever it is told to.

    python -m flowopt.measuring.worker SPEC.json

Speaks lines of JSON: ``{"ready": true}`` once it is open, then for every line ``{"burst": seconds}`` the seconds of
each call. What libraries print goes to standard error.
"""

import json
import os
import sys
from pathlib import Path
from typing import TextIO


def main(spec_path: str) -> int:
    """Serve until standard input ends."""
    # Libraries print to the standard output, some from C: the pipe moves to a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        return _serve(json.loads(Path(spec_path).read_text(encoding="utf-8")), answers)
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is this contender's result
        first = (str(error).strip().splitlines() or [""])[0]
        _say(answers, {"failed": f"{type(error).__name__}: {first}"[:300]})
        return 1


def _serve(spec: dict[str, object], answers: TextIO) -> int:
    from safetensors.torch import load_file, save_file

    from flowopt.measuring.bursts import burst
    from flowopt.measuring.contender import Contender
    from flowopt.measuring.runners import opened

    contender = spec["contender"]
    assert isinstance(contender, dict)
    inputs = load_file(str(spec["inputs"]))
    names = spec["input_names"]
    assert isinstance(names, list)
    run, outputs = opened(Contender.of(contender), {name: inputs[name] for name in names}, int(str(spec["threads"])))
    tensors = {str(at): tensor.detach().clone().contiguous() for at, tensor in enumerate(outputs())}
    save_file(tensors, str(spec["outputs"]))
    run()
    _say(answers, {"ready": True})
    for line in sys.stdin:
        _say(answers, {"seconds": burst(run, float(json.loads(line)["burst"]))})
    return 0


def _say(answers: TextIO, what: dict[str, object]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
