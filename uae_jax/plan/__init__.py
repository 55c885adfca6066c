"""What a run takes on a slice of TPUs, found out without one."""
