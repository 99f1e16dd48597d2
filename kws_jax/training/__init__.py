"""Training: state, steps, and runs that survive kills, damaged files and full disks."""
