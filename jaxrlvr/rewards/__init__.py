"""What RL is paid for: rewards in one table, expressions of them, and noise. No jax."""
