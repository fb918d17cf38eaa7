"""The report: runs read back, conclusions, tables, charts, samples, and the HTML page. No jax."""
