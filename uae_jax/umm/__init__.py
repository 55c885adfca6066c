"""What each architecture plugs into the loop."""
