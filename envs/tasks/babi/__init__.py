"""bAbI: questions about stories, from published files or from a generator."""
