"""Advantages, ratios and losses: arithmetic on arrays."""
