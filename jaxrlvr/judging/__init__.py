"""Labels of reasoning: a rubric, judges that follow it, and the endpoint that reaches a judging model. No jax."""
