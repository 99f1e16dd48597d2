"""Recordings in, batches out: index, decoded cache, labels, the data set, and its faults."""
