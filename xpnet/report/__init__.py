"""Reports: a self-contained HTML page for each run, and a page that compares several runs."""

from xpnet.report.callback import RunReport
from xpnet.report.compare import comparison_page, write_comparison
from xpnet.report.page import run_page, write_page
from xpnet.report.record import Record, read_record, write_record

__all__ = [
    "Record", "RunReport", "comparison_page", "read_record", "run_page", "write_comparison", "write_page", "write_record",
]  # fmt: skip
