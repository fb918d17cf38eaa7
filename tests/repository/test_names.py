"""That a name means one thing, and what is spelled in one place only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "jaxrlvr"


def modules():
  return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def strings(tree):
  """Texts in a module's code, without those that stand alone (docstrings)."""
  alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone)
  return [node.value for node in constants if isinstance(node.value, str)]


def test_one_module_spells_the_thinking_tags():
  spelled = {name for name, tree in modules().items() if any("think>" in text for text in strings(tree))}
  assert spelled == {"text/tags.py"}
