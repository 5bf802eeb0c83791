"""Report of a run: one dict (`document`), its figures (`figures`) and one self-contained HTML page (`page`)."""

from hidecmoe_jax.report.document import UNKNOWN, compare_document, run_document
from hidecmoe_jax.report.gallery import Sample
from hidecmoe_jax.report.measurements import RunFacts, SeedResult
from hidecmoe_jax.report.page import write_report

__all__ = ["UNKNOWN", "RunFacts", "Sample", "SeedResult", "compare_document", "run_document", "write_report"]
