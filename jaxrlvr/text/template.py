"""Renders chat templates, which are code from elsewhere, in a sandbox with limits of time, memory and length."""

from __future__ import annotations

import datetime
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from jaxrlvr.base.errors import InputError

_MAX_RENDERED_CHARACTERS = 1 << 24  # limit on a rendered prompt, and on the result of one operation of a template
_MAX_DATE_FORM = 100  # characters of a form of strftime, which writes up to 256 for each of them
_MAX_EXPONENT = 64  # of a power that a template computes
_RENDERING_SECONDS = 2  # CPU time that the trial rendering may take
_RENDERING_WALL_SECONDS = 40  # time that its process may take, with its start, on a busy machine
_RENDERING_MEMORY = 1 << 30  # bytes that the process of the trial rendering may use
_REFUSED = 3  # exit code of that process for a template that fails; it writes the reason to its standard output
_CONVERSATIONS = (  # for the trial
  ({"role": "user", "content": "?"},),
  ({"role": "system", "content": "?"}, {"role": "user", "content": "?"}),
)


class Template:
  """A chat template, `Template(source, values, date)`, in the Jinja environment of transformers, but without a clock.

  A new template is first rendered in a process of its own. If that takes over 2 seconds of CPU time or over 1 GiB of
  memory, the template is refused, so that none can hang the run or fill its memory. Later renderings run in this
  process, without a limit of time.

  Attribute `reads`: a frozenset of the names of all variables that the template reads.
  """

  def __init__(self, source: str, values: Mapping[str, str], date: datetime.date | None = None):
    """Reads a template.

    source: its text. values: variables besides the messages, by name, such as bos_token. date: the day that the
    function strftime_now writes, at midnight; None: the template has no such function.

    Raises InputError for a template that can't be used; the message doesn't name the file, which the caller must add.
    Raises RuntimeError if the process of the first rendering fails by itself.
    """
    self._values: dict[str, object] = dict(values)
    _try_rendering(source, values, date)  # before parsing, which already evaluates constant expressions
    if date is not None:
      self._values["strftime_now"] = functools.partial(_formatted_date, date)
    environment = _environment()
    try:
      self.reads = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
      self._template = environment.from_string(source)
    except Exception as error:  # hostile text can raise anything, in the parser too
      raise InputError(f"its chat template can't be read: {_reason(error)}; take the model's own") from error

  def render(self, messages: Sequence[Mapping[str, str]], begin_answer: bool = True, **variables) -> str:
    """Returns the text of the messages as the template writes it.

    begin_answer: whether the text also has what the template writes in front of the assistant's answer, as a prompt
    has. messages: the turns of a conversation, each with the keys role and content. variables: further variables of the
    template by name, such as enable_thinking. Raises InputError if the template fails, refuses these roles, or writes
    over 2**24 characters.
    """
    parts = []
    characters = 0
    variables = self._values | variables
    try:
      for part in self._template.generate(
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=begin_answer,
        **variables,
      ):
        parts.append(part)
        characters += len(part)
        if characters > _MAX_RENDERED_CHARACTERS:
          raise OverflowError(f"makes over {_MAX_RENDERED_CHARACTERS} characters")
    except Exception as error:  # a template may raise whatever Python raises
      roles = [message.get("role") for message in messages]
      cure = ""
      if "strftime_now" in str(error) and "strftime_now" not in self._values:
        cure = "; a prompt must not depend on the clock: name the day that it states in config.model.date"
      raise InputError(f"its chat template refuses messages of roles {roles}: {_reason(error)}{cure}") from error
    return "".join(parts)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """A sandbox that also refuses products and powers whose result would fill the memory."""

  intercepted_binops = frozenset(("*", "**", "%"))

  def call_binop(self, context, operator, left, right):
    """Returns `left operator right`, for the intercepted operators. OverflowError if it would be too large."""
    operands = (left, right)
    lengths = [len(operand) for operand in operands if isinstance(operand, str | bytes | list | tuple)]
    integers = [abs(operand) for operand in operands if isinstance(operand, int)]
    if operator == "*" and lengths and integers:
      if lengths[0] * integers[0] > _MAX_RENDERED_CHARACTERS:
        raise OverflowError(f"a product of over {_MAX_RENDERED_CHARACTERS} characters")
    if operator == "**" and len(integers) == 2:
      base, exponent = integers
      if exponent > _MAX_EXPONENT or base > _MAX_RENDERED_CHARACTERS:
        raise OverflowError("a power that large")
    return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
  """Renders the content of `{% generation %}` blocks, whose tags mark the assistant's part.

  Variables that are set within such a block end with it, as in transformers.
  """

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))


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


def _formatted_date(date: datetime.date, form: str) -> str:
  """Returns a day in a form of strftime. Raises ValueError for a form over _MAX_DATE_FORM."""
  if len(form) > _MAX_DATE_FORM:
    raise ValueError(f"strftime_now of a form of {len(form)} characters")
  return datetime.datetime.combine(date, datetime.time()).strftime(form)


def _reason(error: Exception) -> str:
  return f"{str(error) or type(error).__name__}"[:200]


_tried_templates: set[tuple] = set()  # templates and values whose trial has succeeded in this process


def _try_rendering(source: str, values: Mapping[str, str], date: datetime.date | None) -> None:
  """Renders a conversation in a process with limits, once for each template and its values.

  Raises InputError if the template fails, does not end, or uses too much memory. Raises RuntimeError if the process
  itself fails.
  """
  day = "" if date is None else date.isoformat()
  key = (source, day, *sorted(values.items()))
  if key in _tried_templates:
    return
  command = [sys.executable, "-c", "from jaxrlvr.text import template; template._run_trial()"]
  limits = f"over {_RENDERING_SECONDS} seconds, or over {_RENDERING_MEMORY >> 20} MiB"
  beyond_limits = f"its chat template takes {limits} to render a first message; take the model's own"
  try:
    trial = subprocess.run(
      command,
      input=json.dumps([source, values, day]).encode(),
      capture_output=True,
      timeout=_RENDERING_WALL_SECONDS,
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
  _tried_templates.add(key)


def _run_trial() -> None:
  """Renders each of _CONVERSATIONS until one succeeds: the program of the process that `_try_rendering` starts.

  Reads [source, values] as JSON from the standard input. If none succeeds it writes the first reason to the standard
  output and exits with _REFUSED.
  """
  import resource

  source, values, day = json.load(sys.stdin)
  date = datetime.date.fromisoformat(day) if day else None
  resource.setrlimit(resource.RLIMIT_CPU, (_RENDERING_SECONDS, _RENDERING_SECONDS))
  resource.setrlimit(resource.RLIMIT_AS, (_RENDERING_MEMORY, _RENDERING_MEMORY))
  # This process is the trial: Template must not start another.
  _tried_templates.add((source, day, *sorted(values.items())))
  reasons = []
  for messages in _CONVERSATIONS:
    try:
      Template(source, values, date).render(messages)
      return
    except InputError as error:
      reasons.append(str(error))
  print(reasons[0], end="")
  sys.stdout.flush()
  sys.exit(_REFUSED)
