"""The Python door: what `import jaxrlvr as jr` offers, thin over the stages; runs, policies, a step-wise trainer."""
