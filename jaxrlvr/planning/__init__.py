"""Before a run is paid for: TPU slices by name, floating point operations, and collectives of compiled programs."""
