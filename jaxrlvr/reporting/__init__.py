"""The report: runs read back, conclusions, charts, samples, and the HTML page. No jax."""
