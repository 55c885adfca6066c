"""What every backend must compute, recorded on a CPU."""
