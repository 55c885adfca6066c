"""The models: modules, sizes, nothing else."""
