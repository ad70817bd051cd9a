"""Copying, recalling, sorting and inferring: supervised sequence tasks."""
