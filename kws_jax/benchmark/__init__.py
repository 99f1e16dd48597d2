"""What everything costs in time and memory, measured against PyTorch in the same run."""
