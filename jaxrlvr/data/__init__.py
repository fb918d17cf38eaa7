"""Problems and text from files, the hub, prepared sets and generators. No jax."""
