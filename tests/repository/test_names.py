"""Every name means one thing, and some texts are spelled in one place only."""

import ast
import collections
import re
from pathlib import Path

import jaxrlvr

ROOT = Path(__file__).parents[2] / "jaxrlvr"

# Functions of several modules that do the same kind of thing, each to what its module is about. They are called with
# the module's name: `hf_weights.load`.
SHARED_VERBS = {
  "block": "computes one layer of a family of models",
  "config_keys": "of a family's config.json, from a `Spec`",
  "fields": "of `Spec`, from the config.json of a family",
  "grade": "a verifier: says whether an answer is right",
  "load": "returns what a place holds, checked: a config, problems, weights",
  "mean": "of figures, or of what a mask lets through",
  "problems": "a generator of problems of one task",
  "quick": "what `grade` will say, where that needs no parser and no library",
  "read": "returns what a text or a file says",
  "save": "writes what `load` reads",
  "warm": "does once what every call of `grade` would do again",
  "weights": "the table of a family's weights",
}


def modules():
  return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def strings(tree):
  """Returns the texts in a module's code, without its docstrings."""
  alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone)
  return [node.value for node in constants if isinstance(node.value, str)]


def assigned(node):
  """Returns the names that a statement at the top of a module assigns."""
  targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
  return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def homes(name_of):
  """Returns {public name: modules} of the names that stand at the top of more than one module.

  name_of: returns the names that a statement defines. What the Python door offers is called as what it opens.
  """
  modules_of = collections.defaultdict(set)
  for module, tree in modules().items():
    offered = jaxrlvr.__all__ if module.startswith("door/") else ()
    for node in tree.body:
      for name in name_of(node):
        if not name.startswith("_") and name not in offered:
          modules_of[name].add(module)
  return {name: sorted(places) for name, places in modules_of.items() if len(places) > 1}


def test_no_two_classes_or_types_share_a_name():
  def types(node):
    names = [node.name] if isinstance(node, ast.ClassDef) else assigned(node)
    return [name for name in names if re.fullmatch("[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name)]

  assert homes(types) == {}


def test_no_two_constants_share_a_name():
  assert homes(lambda node: [name for name in assigned(node) if re.fullmatch("[A-Z][A-Z0-9_]*", name)]) == {}


def test_functions_that_share_a_name_do_the_same_kind_of_thing():
  shared = homes(lambda node: [node.name] if isinstance(node, ast.FunctionDef) else [])
  assert set(shared) == set(SHARED_VERBS), shared


def test_one_module_spells_the_thinking_tags():
  spelling = {name for name, tree in modules().items() if "think>" in "\n".join(strings(tree))}
  assert spelling == {"text/tags.py"}
