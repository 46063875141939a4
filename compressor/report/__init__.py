"""What a run found, as data, sentences, tables, plots and pages."""
