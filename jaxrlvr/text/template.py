"""Chat templates, which are code from elsewhere: rendered in a sandbox, within bounds of time, memory and length."""

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

CHARACTERS = 1 << 24  # of a rendered prompt, and of what one operation of a template may make
SECONDS = 2  # CPU time of the first rendering
MEMORY = 1 << 30  # bytes of the process that renders first
_PROBES = (
  ({"role": "user", "content": "?"},),
  ({"role": "system", "content": "?"}, {"role": "user", "content": "?"}),
)


class Template:
  """A chat template, set up as transformers does, without a clock.

  It is rendered once in a process of its own that can be killed, so that one that never ends, or fills the memory, is
  refused when it is read.
  """

  def __init__(self, source: str, values: Mapping[str, str]):
    """`values`: names beside the messages, such as bos_token. Raises InputError, which the caller says the file of."""
    self._values = dict(values)
    _try(source, self._values)  # first: even the parser works out what is constant
    env = _environment()
    try:
      self.reads = frozenset(jinja2.meta.find_undeclared_variables(env.parse(source)))
      self._template = env.from_string(source)
    except Exception as error:  # the parser too is open to what a file holds
      raise InputError(f"its chat template can't be read: {_reason(error)}; take the model's own") from error

  def render(self, messages: Sequence[Mapping[str, str]], answer: bool = True, **more) -> str:
    """Returns the text of the messages, with the head of the answer if `answer`; `more` values by name."""
    parts, size = [], 0
    values = self._values | more
    try:
      for part in self._template.generate(
        messages=messages, tools=None, documents=None, add_generation_prompt=answer, **values
      ):
        parts.append(part)
        size += len(part)
        if size > CHARACTERS:
          raise OverflowError(f"makes over {CHARACTERS} characters")
    except Exception as error:  # a template may raise whatever Python raises
      roles = [message["role"] for message in messages]
      cure = ""
      if "strftime_now" in str(error):
        cure = "; a prompt must not depend on the day: use strftime_now only where it `is defined`"
      raise InputError(f"its chat template refuses messages of roles {roles}: {_reason(error)}{cure}") from error
    return "".join(parts)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Refuses products and powers that fill the memory in one operation."""

  intercepted_binops = frozenset(("*", "**", "%"))

  def call_binop(self, context, operator, left, right):
    sizes = [len(side) for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
    counts = [abs(side) for side in (left, right) if isinstance(side, int)]
    if operator == "*" and sizes and counts and sizes[0] * counts[0] > CHARACTERS:
      raise OverflowError(f"a product of over {CHARACTERS} characters")
    if operator == "**" and len(counts) == 2 and (counts[1] > 64 or counts[0] > CHARACTERS):
      raise OverflowError("a power that large")
    return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`, which marks the assistant's part for others, stands for what it encloses."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
  def refuse(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  extensions = [_Generation, jinja2.ext.loopcontrols]
  env = _Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
  env.filters["tojson"], env.globals["raise_exception"] = tojson, refuse
  return env


def _reason(error: Exception) -> str:
  return f"{str(error) or type(error).__name__}"[:200]


_tried: set[tuple] = set()  # templates that this process has seen end


def _try(source: str, values: Mapping[str, str]) -> None:
  """Renders a first conversation in a process with limits; InputError where it fails, doesn't end, or grows too large.

  A template may want a system message, so one with it is tried too.
  """
  key = (source, *sorted(values.items()))
  if key in _tried:
    return
  command = [sys.executable, "-c", "from jaxrlvr.text import template; template._first()"]
  told = f"over {SECONDS} seconds, or over {MEMORY >> 20} MiB"
  try:
    done = subprocess.run(
      command,
      input=json.dumps([source, values]).encode(),
      capture_output=True,
      timeout=20 * SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    raise InputError(f"its chat template takes {told} to render a first message; take the model's own") from None
  if done.returncode == 3:
    raise InputError(done.stdout.decode(errors="replace"))
  if done.returncode < 0 or b"MemoryError" in done.stderr:
    raise InputError(f"its chat template takes {told} to render a first message; take the model's own")
  if done.returncode:
    raise RuntimeError(f"rendering a chat template in a process of its own failed: {done.stderr.decode()[-500:]}")
  _tried.add(key)


def _first() -> None:
  """What the process of `_try` runs: exit 0 where a probe renders, 3 with the reason where none does."""
  import resource

  source, values = json.load(sys.stdin)
  resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  _tried.add((source, *sorted(values.items())))
  reasons = []
  for messages in _PROBES:
    try:
      Template(source, values).render(messages)
      return
    except InputError as error:
      reasons.append(str(error))
  print(reasons[0], end="")
  sys.stdout.flush()
  sys.exit(3)
