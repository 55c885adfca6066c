"""What a reconstruction is worth."""
