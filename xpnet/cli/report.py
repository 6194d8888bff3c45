"""``xpnet report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from xpnet import report as reports
from xpnet.cli.places import check_output
from xpnet.report.callback import PAGE
from xpnet.report.record import NAME


def report(args: argparse.Namespace) -> int:
    """Write the page of one run again, or a page that compares several."""
    check_output("--out", args.out, *args.runs, *(Path(run) / NAME for run in args.runs))
    records = [reports.read_record(run) for run in args.runs]
    if len(records) == 1:
        run = Path(args.runs[0])
        out = Path(args.out or (run if run.is_dir() else run.parent) / PAGE)
        reports.write_page(records[0], out)
    else:
        out = Path(args.out or "comparison.html")
        reports.write_comparison(records, out)
    print(out)
    return 0
