"""A page about a sweep: what is best, whether that is sure, and where it comes from."""

from vlm.evaluation.sweep_report.page import write_sweep_report

__all__ = ["write_sweep_report"]
