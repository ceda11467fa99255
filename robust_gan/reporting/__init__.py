"""Reports: what an evaluation found, as JSON, tables, plots and one HTML page."""
