"""Stage `report`: the page people look at and the tables DVC compares, from what every earlier stage left."""

from __future__ import annotations

from tasks.stage import StageJob, StageOutcome, temporary_files_in
from vdmini_core.report.page import render_report
from vdmini_core.report.tables import write_tables


def run(job: StageJob) -> StageOutcome:
    """Render `artifacts/report/index.html`, one file that needs nothing beside it, and `tables/`."""
    settings = job.params.report
    with temporary_files_in(job.work):
        page = render_report(job.root / "artifacts", job.out, settings.title, settings.videos)
    write_tables(job.root / "artifacts", job.out / "tables")
    size = page.stat().st_size
    job.monitor.note(f"the report is one file of {size / 1e6:.1f} MB: artifacts/report/{page.name}")
    # The page shows latencies, so its size varies from run to run and stays out of the manifest's metrics.
    return StageOutcome(timing={"page_bytes": size})
