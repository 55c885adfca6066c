"""The mesh and where every tensor lives on it."""
