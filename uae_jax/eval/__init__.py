"""Held-out evaluation and the report."""
