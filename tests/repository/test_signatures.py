"""Every public function of the library is annotated; mypy checks that the annotations are right (launch/test.sh)."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
BY_CONVENTION = ("self", "cls")


def test_every_public_function_is_annotated():
  unsaid = []
  for path in sorted((ROOT / "jaxrlvr").rglob("*.py")):
    for function in public_functions(ast.parse(path.read_text())):
      names = missing(function)
      if names:
        unsaid.append(f"{path.relative_to(ROOT)}:{function.lineno}: {function.name}: {', '.join(names)}")
  assert not unsaid, "\n".join(unsaid)


def public_functions(tree):
  """Yields the public functions of a module or a class, and of its public classes, without nested functions."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from public_functions(node)
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
      yield node


def missing(function):
  """Returns the parameters without annotation, and "what it returns" if that has none."""
  arguments = function.args
  parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
  names = [one.arg for one in parameters if one.annotation is None and one.arg not in BY_CONVENTION]
  return names if function.returns else [*names, "what it returns"]
