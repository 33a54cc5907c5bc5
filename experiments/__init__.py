"""Studies: each a question, the runs that answer it, and a report."""
