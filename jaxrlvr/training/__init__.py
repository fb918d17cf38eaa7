"""One update: losses, packed rows, micro-batches and the optimizer."""
