"""The report of a run: one dict (`document`), its pictures (`figures`) and one self-contained page (`page`)."""

from hidecmoe_jax.report.document import RunFacts, SeedResult, compare_document, run_document
from hidecmoe_jax.report.page import Sample, write_report

__all__ = ["RunFacts", "Sample", "SeedResult", "compare_document", "run_document", "write_report"]
