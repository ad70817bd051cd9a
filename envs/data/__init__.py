"""Data files: where they are published, where they are found, and their readers."""
