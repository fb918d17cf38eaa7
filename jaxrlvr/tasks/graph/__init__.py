"""The study's two graph tasks, quantum_lock and largest_island: problems, their levels, and exact verifiers."""
