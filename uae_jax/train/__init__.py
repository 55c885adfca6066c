"""State, the fused step, the loop."""
