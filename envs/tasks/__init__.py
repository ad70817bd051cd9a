"""Supervised sequence tasks as environments: one task a file, by kind."""
