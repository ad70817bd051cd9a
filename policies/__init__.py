"""Policies, encoders, heads and memories. Imports neither `envs` nor `agents`."""
