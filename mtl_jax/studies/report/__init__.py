"""The report of a study: tables, figures, pages."""
