"""The results of a run as data, sentences, tables, plots and pages."""
