"""Data files: sources, local search and download, and readers."""
