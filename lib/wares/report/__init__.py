"""What a person sees of a job: `console.py` while it runs, and what the suite ends with: `summary.py` gathers it, `text.py`
prints it, and `html.py` makes a page to look at."""

from wares.report.console import Report, table_line

__all__ = ["Report", "table_line"]
