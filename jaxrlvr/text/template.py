"""Renders chat templates, which are code from elsewhere, in a sandbox with limits of time, memory and length."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from jaxrlvr.base.errors import InputError

MAX_RENDERED_CHARACTERS = 1 << 24  # a rendered prompt, or the result of one operation of a template, may be this long
RENDERING_SECONDS = 2  # CPU time that the trial rendering may take
RENDERING_MEMORY = 1 << 30  # bytes that the process of the trial rendering may use
_REFUSED = 3  # exit code of that process for a template that fails; it writes the reason to its standard output
_CONVERSATIONS = (  # for the trial
  ({"role": "user", "content": "?"},),
  ({"role": "system", "content": "?"}, {"role": "user", "content": "?"}),
)


class Template:
  """A chat template in the Jinja environment that transformers uses, but without a clock.

  A new template is first rendered in a process that can be killed. One that never ends, or that fills the memory, is
  thus refused when it is read.

  `reads`: names of all variables that the template reads.
  """

  def __init__(self, source: str, values: Mapping[str, str]):
    """`source`: the template's text. `values`: variables other than the messages, such as bos_token.

    Raises InputError for a template that can't be used; the message doesn't name the file, which the caller must add.
    """
    self._values = dict(values)
    _try(source, self._values)  # before parsing, which already evaluates constant expressions
    environment = _environment()
    try:
      self.reads = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
      self._template = environment.from_string(source)
    except Exception as error:  # hostile text can raise anything, in the parser too
      raise InputError(f"its chat template can't be read: {_reason(error)}; take the model's own") from error

  def render(self, messages: Sequence[Mapping[str, str]], answer: bool = True, **more) -> str:
    """Returns the text of the messages; with `answer`, also what begins the assistant's answer.

    `messages`: the turns of a conversation, each with the keys role and content. `more`: further variables by name,
    such as enable_thinking. Raises InputError if the template fails, refuses these roles, or writes over 2**24
    characters.
    """
    parts = []
    characters = 0
    variables = self._values | more
    try:
      for part in self._template.generate(
        messages=messages, tools=None, documents=None, add_generation_prompt=answer, **variables
      ):
        parts.append(part)
        characters += len(part)
        if characters > MAX_RENDERED_CHARACTERS:
          raise OverflowError(f"makes over {MAX_RENDERED_CHARACTERS} characters")
    except Exception as error:  # a template may raise whatever Python raises
      roles = [message.get("role") for message in messages]
      cure = ""
      if "strftime_now" in str(error):
        cure = "; a prompt must not depend on the day: use strftime_now only where it `is defined`"
      raise InputError(f"its chat template refuses messages of roles {roles}: {_reason(error)}{cure}") from error
    return "".join(parts)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """A sandbox that also refuses products and powers whose result would fill the memory."""

  intercepted_binops = frozenset(("*", "**", "%"))

  def call_binop(self, context, operator, left, right):
    operands = (left, right)
    lengths = [len(operand) for operand in operands if isinstance(operand, str | bytes | list | tuple)]
    integers = [abs(operand) for operand in operands if isinstance(operand, int)]
    if operator == "*" and lengths and integers:
      if lengths[0] * integers[0] > MAX_RENDERED_CHARACTERS:
        raise OverflowError(f"a product of over {MAX_RENDERED_CHARACTERS} characters")
    if operator == "**" and len(integers) == 2:
      base, exponent = integers
      if exponent > 64 or base > MAX_RENDERED_CHARACTERS:
        raise OverflowError("a power that large")
    return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
  """Renders the content of `{% generation %}` blocks and ignores the tags, which mark the assistant's part."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
  """Returns a sandbox with the functions that transformers offers to chat templates, except the clock."""

  def refuse(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  extensions = [_Generation, jinja2.ext.loopcontrols]
  environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = refuse
  return environment


def _reason(error: Exception) -> str:
  return f"{str(error) or type(error).__name__}"[:200]


_tried: set[tuple] = set()  # templates and values whose trial has succeeded in this process


def _try(source: str, values: Mapping[str, str]) -> None:
  """Renders a conversation in a process with limits, once for each template and its values.

  Raises InputError if the template fails, does not end, or uses too much memory. Raises RuntimeError if the process
  itself fails.
  """
  key = (source, *sorted(values.items()))
  if key in _tried:
    return
  command = [sys.executable, "-c", "from jaxrlvr.text import template; template._run_trial()"]
  limits = f"over {RENDERING_SECONDS} seconds, or over {RENDERING_MEMORY >> 20} MiB"
  beyond_limits = f"its chat template takes {limits} to render a first message; take the model's own"
  try:
    trial = subprocess.run(
      command,
      input=json.dumps([source, values]).encode(),
      capture_output=True,
      timeout=20 * RENDERING_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    raise InputError(beyond_limits) from None
  if trial.returncode == _REFUSED:
    raise InputError(trial.stdout.decode(errors="replace"))
  if trial.returncode < 0 or b"MemoryError" in trial.stderr:
    raise InputError(beyond_limits)
  if trial.returncode:
    raise RuntimeError(f"rendering a chat template in a process of its own failed: {trial.stderr.decode()[-500:]}")
  _tried.add(key)


def _run_trial() -> None:
  """Renders each of _CONVERSATIONS until one succeeds: the program of the process that `_try` starts.

  Reads [source, values] as JSON from the standard input. If none succeeds it writes the first reason to the standard
  output and exits with _REFUSED.
  """
  import resource

  source, values = json.load(sys.stdin)
  resource.setrlimit(resource.RLIMIT_CPU, (RENDERING_SECONDS, RENDERING_SECONDS))
  resource.setrlimit(resource.RLIMIT_AS, (RENDERING_MEMORY, RENDERING_MEMORY))
  _tried.add((source, *sorted(values.items())))  # this process is the trial: Template must not start another
  reasons = []
  for messages in _CONVERSATIONS:
    try:
      Template(source, values).render(messages)
      return
    except InputError as error:
      reasons.append(str(error))
  print(reasons[0], end="")
  sys.stdout.flush()
  sys.exit(_REFUSED)
