"""Print the goal table: one row per promise.

    python -m tests.goals [--only 'spine.*'] [--cached]

Long rows keep their last result in ``.goals.json`` with commit and date; ``--cached`` prints those instead of
running them again, and marks a result of another commit as stale.
"""

import argparse
import datetime
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from tests.benchmarks.commit import commit
from tests.goals import (
    absorb,
    adapt,
    alarms,
    attention,
    bench,
    constants,
    linear,
    loading,
    mutants,
    norms,
    ops,
    orders,
    parametrizations,
    samplers,
    schedulers,
    spine,
    ssm,
    swaps,
    tvm,
    verification,
)
from tests.goals.row import Measured, Row

ROWS = (
    *spine.ROWS,
    *loading.ROWS,
    *verification.ROWS,
    *mutants.ROWS,
    *alarms.ROWS,
    *constants.ROWS,
    *parametrizations.ROWS,
    *norms.ROWS,
    *ops.ROWS,
    *absorb.ROWS,
    *orders.ROWS,
    *schedulers.ROWS,
    *samplers.ROWS,
    *tvm.ROWS,
    *bench.ROWS,
    *adapt.ROWS,
    *attention.ROWS,
    *swaps.ROWS,
    *linear.ROWS,
    *ssm.ROWS,
)
_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".goals.json"
_STATUS = {True: "pass", False: "fail", None: "not run"}


def main() -> int:
    """Exit code 1 when a row fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.goals", description="Print the goal table.")
    parser.add_argument("--only", default="*", help="pattern of row names, such as 'spine.*'")
    parser.add_argument("--cached", action="store_true", help="print the last result of long rows")
    options = parser.parse_args()
    rows = [row for row in ROWS if fnmatch(row.name, options.only)]
    if not rows:
        parser.error(f"no row matches {options.only!r}; rows: {', '.join(r.name for r in ROWS)}")
    width = max(len(row.name) for row in rows)
    failed = False
    for row in rows:
        measured, remark = _measured(row, use_cache=options.cached)
        failed |= measured.is_met is False
        print(f"{row.name:{width}}  {measured.value:58} {row.goal:52} {_STATUS[measured.is_met]}{remark}", flush=True)
        for detail in measured.details:
            print(f"{'':{width}}    {detail}")
    return int(failed)


def _measured(row: Row, *, use_cache: bool) -> tuple[Measured, str]:
    kept = json.loads(_CACHE.read_text()) if _CACHE.exists() else {}
    now = commit()
    if use_cache and row.is_long:
        last = kept.get(row.name)
        if last is None:
            return Measured("-", None), ""
        remark = f" ({last['commit']} {last['date']}{'' if last['commit'] == now else ', stale'})"
        return Measured(last["value"], last["is_met"], tuple(last["details"])), remark
    measured = row.measure()
    if row.is_long:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        kept[row.name] = {
            "value": measured.value,
            "is_met": measured.is_met,
            "details": measured.details,
            "commit": now,
            "date": today,
        }
        _CACHE.write_text(json.dumps(kept, indent=1))
    return measured, ""


if __name__ == "__main__":
    sys.exit(main())
