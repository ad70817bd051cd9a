"""Watching an agent: a session, its pictures, and the window that shows them."""
