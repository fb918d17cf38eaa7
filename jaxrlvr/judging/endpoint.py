"""A chat-completions endpoint, of any vendor or a local server, as a function from prompts to texts."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import http.client
import json
import logging
import os
import random
import re
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxrlvr.base import signals
from jaxrlvr.base.errors import InputError

_LOG = logging.getLogger(__name__)
Complete = Callable[[list[str]], Iterable[str | None]]  # texts in the order of the prompts, None where there is none
_MOST_BYTES = 1 << 20  # of a response's body
_MOST_TOKENS = 10**9  # of a call, beyond which usage is garbage
_LONGEST_WAIT = 30.0  # seconds of back-off, but for a Retry-After
_PATIENCE = 8  # prompts in a row that an outage may take before nothing is asked any more, or twice those in flight
_CURES = {  # of status codes after which no further call makes sense
  **dict.fromkeys((301, 302, 303, 307, 308, 404, 405), "correct the URL, which ends where /chat/completions begins, or "
                  "the model"),
  **dict.fromkeys((401, 403), "see the key in the environment variable {!r} (key_variable), and what it may "
                  "do"),
  402: "the account has to be paid for",
}  # fmt: skip
# What garbage in the place of JSON may raise.
_NOT_AN_ANSWER = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where and how to ask; the key itself is in no field, so that it gets into no file."""

  url: str  # up to where /chat/completions begins
  model: str
  key_variable: str = ""  # environment variable that holds the key; "": none is sent
  request: str = "{}"  # further fields of each request, a JSON object
  timeout_seconds: float = 60.0  # of a call, from its first byte to its last
  deadline_seconds: float = 180.0  # of a prompt, with all retries and the waiting between them
  retries: int = 5
  concurrency: int = 8  # calls at a time
  backoff_seconds: float = 1.0  # the first wait is up to so long, each further one up to twice as long

  def __post_init__(self):
    """InputError for what can be known to be wrong before the first call."""
    try:
      url = urllib.parse.urlsplit(self.url)
      fits = re.fullmatch("[!-~]+", self.url) and url.scheme in ("http", "https") and url.hostname and url.port != 0
      fits = fits and url.hostname.encode("idna")
    except ValueError:
      fits = False
    if not fits or not self.model:
      raise InputError(f"url {self.url.partition('?')[0].rpartition('@')[2]!r}, model {self.model!r}: name both, the "
                       "URL as http://localhost:8000/v1 or https://...")  # fmt: skip
    if url.username is not None or url.query or url.fragment:
      raise InputError("url holds a user, a query or a fragment, and would be written to files; leave them out: a key "
                       "comes from the environment (key_variable)")  # fmt: skip
    try:
      if not isinstance(json.loads(self.request), dict):
        raise ValueError("it is no object")
    except ValueError as error:
      raise InputError(f"request {self.request!r} is no JSON object ({error}); write it as {{}} or "
                       '{"temperature": 0}') from error  # fmt: skip

  def key(self) -> str:
    if not self.key_variable:
      return ""
    value = os.environ.get(self.key_variable, "").strip()
    if not re.fullmatch(r"[!-~]+", value):
      raise InputError(
        f"environment variable {self.key_variable} {'holds no usable key' if value else 'is not set'}; put the "
        "endpoint's key there, or name another variable"
      )
    return value


class _Reply(NamedTuple):
  text: str | None
  trouble: str = ""  # why there is no text
  again: float | None = None  # seconds after which, at the earliest, the same call may succeed; None: it won't
  hopeless: bool = False  # no other prompt will fare better


class Client:
  """Completes prompts, several at a time, each one user message. What can't be had is None, and why is told once.

  After an answer by which no call can succeed (wrong URL, wrong key), and in an outage that lasts, nothing is asked any
  more. `counts`: calls, retries, prompt_tokens, completion_tokens.
  """

  def __init__(self, endpoint: Endpoint):
    self._endpoint, self._url = endpoint, urllib.parse.urlsplit(endpoint.url.rstrip("/") + "/chat/completions")
    self._fields = {"model": endpoint.model} | json.loads(endpoint.request)
    self._key = endpoint.key()
    self.identity = json.dumps(self._fields, sort_keys=True)
    self.counts: Counter = Counter()
    self._told: set[str] = set()
    self._down, self._in_a_row = "", 0

  def __call__(self, prompts: list[str]) -> Iterator[str | None]:
    """Texts in the order of the prompts, each as soon as it and those before it are there."""
    with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
      for reply, counts in pool.map(self._ask, prompts):
        self.counts.update(counts)
        self._note(reply)
        yield reply.text

  def _note(self, reply: _Reply) -> None:
    self._in_a_row = self._in_a_row + 1 if reply.again is not None else 0
    if reply.trouble and reply.trouble not in self._told and not signals.asked():
      self._told.add(reply.trouble)
      _LOG.warning("%s: %s", self._endpoint.url, reply.trouble)
    if not self._down and self._in_a_row > max(_PATIENCE, 2 * self._endpoint.concurrency):
      self._down = f"{self._in_a_row} prompts in a row had no answer: nothing is asked any more"

  def _ask(self, prompt: str) -> tuple[_Reply, Counter]:
    """The last of as many calls as it takes, and what they cost."""
    e, counts, end = self._endpoint, Counter(), time.monotonic() + self._endpoint.deadline_seconds
    body = json.dumps(self._fields | {"messages": [{"role": "user", "content": prompt}]}).encode()
    reply = _Reply(None, "stopped")
    for attempt in range(e.retries + 1):
      left = end - time.monotonic()
      if self._down or signals.asked() or left <= 0:
        return reply._replace(trouble=self._down or reply.trouble), counts
      counts["calls"] += 1
      counts["retries"] += attempt > 0
      reply = self._call(body, min(e.timeout_seconds, left), counts)
      self._down = reply.trouble if reply.hopeless else self._down
      if reply.again is None or attempt == e.retries:
        break
      wait = max(random.uniform(0, min(_LONGEST_WAIT, e.backoff_seconds * 2 ** min(attempt, 9))), reply.again)
      if time.monotonic() + wait > end:
        break
      _sleep(wait)
    return reply, counts

  def _call(self, body: bytes, seconds: float, counts: Counter) -> _Reply:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
    try:
      status, again, data = _post(self._url, body, headers, seconds)
    except TimeoutError:
      return _Reply(None, "no answer in time", 0.0)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: chunks of negative size
      return _Reply(None, f"can't be reached ({getattr(error, 'strerror', None) or type(error).__name__})", 0.0)
    trouble = f"answered {status} {http.client.responses.get(status, '')}".strip()
    if status in (408, 429) or status >= 500:
      return _Reply(None, trouble, again)
    if status in _CURES:
      return _Reply(None, f"{trouble}; {_CURES[status].format(self._endpoint.key_variable)}", hopeless=True)
    if not 200 <= status < 300:
      return _Reply(None, trouble + self._reason(data))
    if len(data) > _MOST_BYTES:
      return _Reply(None, f"answered with more than {_MOST_BYTES} bytes")
    return _read(data, counts)

  def _reason(self, data: bytes) -> str:
    """What the body of an error says, escaped and without the key."""
    with contextlib.suppress(*_NOT_AN_ANSWER):
      said = str(json.loads(data)["error"]["message"])
      return f": {(said.replace(self._key, '***') if self._key else said)[:200]!r}"
    return ""


def _read(data: bytes, counts: Counter) -> _Reply:
  """The text of a chat completion; anything else is no text."""
  try:
    answer = json.loads(data)
    for name in ("prompt_tokens", "completion_tokens"):
      with contextlib.suppress(*_NOT_AN_ANSWER):
        if 0 <= (used := int(answer["usage"][name])) <= _MOST_TOKENS:
          counts[name] += used
    choice = answer["choices"][0]
    text, ended = choice["message"]["content"], choice.get("finish_reason")
  except _NOT_AN_ANSWER:
    return _Reply(None, "answered with something that is no chat completion")
  if ended in ("length", "content_filter"):  # the word at its end may be the beginning of another
    return _Reply(None, f"answered with a text that was cut off ({ended}); see the limits in request")
  return _Reply(text) if isinstance(text, str) else _Reply(None, "answered without a text")


def _post(url, body: bytes, headers: dict[str, str], seconds: float) -> tuple[int, float, bytes]:
  """(status, Retry-After in seconds, body, cut behind the limit), or TimeoutError, however slowly the answer drips.

  Redirects are not followed and proxies not used: the key goes to this host and no other.
  """
  kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
  end, connection = time.monotonic() + seconds, kind(url.hostname, url.port, timeout=seconds)
  with contextlib.closing(connection):
    connection.connect()
    guard = threading.Timer(end - time.monotonic(), _shut, (connection.sock,))
    guard.daemon = True
    guard.start()
    try:
      connection.request("POST", url.path, body, headers)
      response = connection.getresponse()
      data = response.read(_MOST_BYTES + 1)
      if response.length and len(data) <= _MOST_BYTES:
        raise ConnectionError(None, "cut off")
    except (OSError, http.client.HTTPException):
      if time.monotonic() >= end:
        raise TimeoutError from None
      raise
    finally:
      guard.cancel()
    if time.monotonic() >= end:  # a body without a length ends where the guard cut it
      raise TimeoutError
    return response.status, _seconds(response.headers.get("Retry-After", "")), data


def _shut(sock: socket.socket) -> None:
  with contextlib.suppress(OSError):
    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, whose state is another thread's


def _seconds(retry_after: str) -> float:
  """A Retry-After, in seconds or as an HTTP date, as seconds from now; 0 where it is neither."""
  if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", retry_after.strip()):
    return float(retry_after)
  try:
    return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
  except (ValueError, OverflowError):
    return 0.0


def _sleep(seconds: float) -> None:
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0 and not signals.asked():
    time.sleep(min(left, 0.5))
