"""A memory over a sequence: gradient checkpointing, its measurement, and layers applied to all steps at once."""
