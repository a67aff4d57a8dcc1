"""Reports: what a run, an inspected tokenizer or a comparison shows, on one page."""

from mapet.api.report.write import report

__all__ = ["report"]
