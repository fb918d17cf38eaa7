"""`python -m jaxrlvr` is the command line."""

from jaxrlvr.cli import run

if __name__ == "__main__":
  run()
