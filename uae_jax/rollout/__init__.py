"""Sampling: captions, images, and both in a row."""
