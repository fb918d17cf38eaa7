"""What RL is paid for: rewards in one table, a module a family, expressions of them, and noise. No jax."""
