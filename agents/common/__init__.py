"""Shared by every command: arguments, files, error reports and the terminal."""
