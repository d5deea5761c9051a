"""What a run tells: the results file, tables, figures, progress and the one-file page."""
