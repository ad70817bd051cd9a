"""Supervised sequence tasks as environments: one task a file, over the base in `envs.tasks.base`."""
