"""Records that cross rooms, errors with exit codes, and what a run writes: files, logs, object stores, signals."""
