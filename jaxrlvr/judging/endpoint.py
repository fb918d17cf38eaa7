"""Completes prompts by calls to an OpenAI-compatible chat-completions endpoint, of a vendor or a local server."""

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
# Takes prompts and returns their completions in the same order, None for a prompt that could not be completed. It may
# yield each as soon as it is known.
Complete = Callable[[list[str]], Iterable[str | None]]
_MOST_BYTES = 1 << 20  # largest body of an answer that is read
_MOST_TOKENS = 10**9  # largest token count of a call that is believed
_LONGEST_WAIT = 30.0  # seconds between two calls at most, unless a Retry-After asks for more
_MOST_DOUBLINGS = 9  # of the wait between calls
_PATIENCE = 8  # consecutive prompts without an answer after which, or after twice those in flight, calling ends
_WRONG_URL = "correct the URL, which ends where /chat/completions begins, or the model"
_WRONG_KEY = "see the key in the environment variable {!r} (key_variable), and what it may do"
# What to do about the status codes after which no further call can succeed.
_CURES = {
  **dict.fromkeys((301, 302, 303, 307, 308, 404, 405), _WRONG_URL),
  **dict.fromkeys((401, 403), _WRONG_KEY),
  402: "the account has to be paid for",
}
# The errors that reading an answer can raise where it is not the JSON that it should be.
_NOT_AN_ANSWER = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """An endpoint and how to call it. The API key is in no field, so that it gets into no file.

  Raises InputError for a url, model or request that can be known to be wrong before the first call.
  """

  url: str  # the part before /chat/completions, as "https://HOST/v1"; without a user, a query or a fragment
  model: str  # the model's name in each request
  key_variable: str = ""  # the environment variable that holds the API key; "": no key is sent
  request: str = "{}"  # further fields of each request as a JSON object, as '{"temperature": 0}'
  timeout_seconds: float = 60.0  # limit of one call, from its first byte to its last
  deadline_seconds: float = 180.0  # limit of one prompt, with all retries and the waits between them
  retries: int = 5  # calls for a prompt after the first one, at most
  concurrency: int = 8  # prompts that are in flight at a time
  backoff_seconds: float = 1.0  # upper limit of the first wait between calls; the limit doubles with each further one

  def __post_init__(self):
    """Checks the fields. InputError for what can be known to be wrong before the first call."""
    if not _is_http_url(self.url) or not self.model:
      without_secrets = self.url.partition("?")[0].rpartition("@")[2]
      raise InputError(
        f"url {without_secrets!r}, model {self.model!r}: name both, the URL as http://localhost:8000/v1 or https://..."
      )
    url = urllib.parse.urlsplit(self.url)
    if url.username is not None or url.query or url.fragment:
      raise InputError(
        "url holds a user, a query or a fragment, and would be written to files; leave them out: a key comes from the "
        "environment (key_variable)"
      )
    try:
      if not isinstance(json.loads(self.request), dict):
        raise ValueError("it is no object")
    except ValueError as error:
      raise InputError(
        f'request {self.request!r} is no JSON object ({error}); write it as {{}} or {{"temperature": 0}}'
      ) from error

  def key(self) -> str:
    """Reads the API key from the environment; returns "" if key_variable is "".

    Raises InputError if the variable is not set, or holds anything but printable ASCII characters without spaces.
    """
    if not self.key_variable:
      return ""
    value = os.environ.get(self.key_variable, "").strip()
    if not re.fullmatch(r"[!-~]+", value):
      raise InputError(
        f"environment variable {self.key_variable} {'holds no usable key' if value else 'is not set'}; put the "
        "endpoint's key there, or name another variable"
      )
    return value


def _is_http_url(text: str) -> bool:
  """Returns whether a text is an http or https URL with a host."""
  try:
    url = urllib.parse.urlsplit(text)
    if not re.fullmatch("[!-~]+", text) or url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
      return False
    return bool(url.hostname.encode("idna"))
  except ValueError:
    return False


class _Reply(NamedTuple):
  """The outcome of a call."""

  text: str | None  # the completion
  trouble: str = ""  # why there is no text
  retry_after: float | None = None  # seconds after which the same call may succeed; None: it won't, or has succeeded
  hopeless: bool = False  # no call with another prompt will succeed either


class Client:
  """Completes prompts by calls to an endpoint, as `Client(endpoint)(prompts)`.

  The call takes a list of prompts and yields the completion of each, in their order, as soon as it is known. Each
  prompt is sent as one user message, several at a time. A prompt that can't be completed gives None; each cause is
  logged once and no error of the network is raised. After an answer that shows that no call can succeed (wrong URL,
  wrong key, unpaid), and in an outage that lasts, this client makes no further call: all other prompts give None.

  Attributes:
  - identity: a JSON text with the model and the other fields of the requests.
  - counts: a Counter of calls (retries included), retries, and prompt_tokens and completion_tokens as the endpoint
    reports them, since the client was made.
  """

  def __init__(self, endpoint: Endpoint):
    """Prepares calls, and makes none. Raises InputError if the endpoint's key is not in the environment."""
    self._endpoint = endpoint
    self._url = urllib.parse.urlsplit(endpoint.url.rstrip("/") + "/chat/completions")
    self._fields = {"model": endpoint.model} | json.loads(endpoint.request)
    self._key = endpoint.key()
    self.identity = json.dumps(self._fields, sort_keys=True)
    self.counts: Counter = Counter()
    self._logged_troubles: set[str] = set()
    self._ended = ""  # why no further call is made; "": calls are made
    self._unanswered = 0  # consecutive prompts without an answer

  def __call__(self, prompts: list[str]) -> Iterator[str | None]:
    """Yields the completion of each prompt, in their order, as soon as it and all earlier ones are there.

    Yields None for a prompt that can't be completed, for a completion that was cut off at a limit of length, and for
    all prompts that remain when a signal asks the run to stop.
    """
    with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
      for reply, counts in pool.map(self._ask, prompts):
        self.counts.update(counts)
        self._note(reply)
        yield reply.text

  def _note(self, reply: _Reply) -> None:
    """Logs a trouble the first time it occurs, and ends all calling in an outage that lasts."""
    was_answered = reply.retry_after is None
    self._unanswered = 0 if was_answered else self._unanswered + 1
    if reply.trouble and reply.trouble not in self._logged_troubles and not signals.stop_requested():
      self._logged_troubles.add(reply.trouble)
      _LOG.warning("%s: %s", self._endpoint.url, reply.trouble)
    if not self._ended and self._unanswered > max(_PATIENCE, 2 * self._endpoint.concurrency):
      self._ended = f"{self._unanswered} prompts in a row had no answer: nothing is asked any more"

  def _ask(self, prompt: str) -> tuple[_Reply, Counter]:
    """Calls the endpoint with a prompt until a call succeeds or none can. Returns the last reply, and the counts."""
    endpoint, counts = self._endpoint, Counter()
    deadline = time.monotonic() + endpoint.deadline_seconds
    body = json.dumps(self._fields | {"messages": [{"role": "user", "content": prompt}]}).encode()
    reply = _Reply(None, "stopped")
    for attempt in range(endpoint.retries + 1):
      seconds_left = deadline - time.monotonic()
      if self._ended or signals.stop_requested() or seconds_left <= 0:
        return reply._replace(trouble=self._ended or reply.trouble), counts
      counts["calls"] += 1
      counts["retries"] += 1 if attempt > 0 else 0
      reply = self._call(body, min(endpoint.timeout_seconds, seconds_left), counts)
      if reply.hopeless:
        self._ended = reply.trouble
      if reply.retry_after is None or attempt == endpoint.retries:
        break
      longest_wait = min(_LONGEST_WAIT, endpoint.backoff_seconds * 2 ** min(attempt, _MOST_DOUBLINGS))
      wait = max(random.uniform(0, longest_wait), reply.retry_after)
      if time.monotonic() + wait > deadline:
        break
      _sleep(wait)
    return reply, counts

  def _call(self, body: bytes, seconds: float, counts: Counter) -> _Reply:
    """Makes one call of at most so many seconds; adds the tokens that it used to `counts`."""
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    try:
      status, retry_after, data = _post(self._url, body, headers, seconds)
    except TimeoutError:
      return _Reply(None, "no answer in time", 0.0)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: chunks of negative size
      return _Reply(None, f"can't be reached ({getattr(error, 'strerror', None) or type(error).__name__})", 0.0)
    trouble = f"answered {status} {http.client.responses.get(status, '')}".strip()
    if status in (408, 429) or status >= 500:
      return _Reply(None, trouble, retry_after)
    if status in _CURES:
      return _Reply(None, f"{trouble}; {_CURES[status].format(self._endpoint.key_variable)}", hopeless=True)
    if not 200 <= status < 300:
      return _Reply(None, trouble + self._reason(data))
    if len(data) > _MOST_BYTES:
      return _Reply(None, f"answered with more than {_MOST_BYTES} bytes")
    return _read_completion(data, counts)

  def _reason(self, data: bytes) -> str:
    """Returns what the body of an error says, escaped and without the key, behind ": "; "" where it says nothing."""
    with contextlib.suppress(*_NOT_AN_ANSWER):
      message = str(json.loads(data)["error"]["message"])
      if self._key:
        message = message.replace(self._key, "***")
      return f": {message[:200]!r}"
    return ""


def _read_completion(data: bytes, counts: Counter) -> _Reply:
  """Reads the text from the body of a chat completion, and adds the tokens that it used to `counts`."""
  try:
    answer = json.loads(data)
    for name in ("prompt_tokens", "completion_tokens"):
      with contextlib.suppress(*_NOT_AN_ANSWER):
        used = int(answer["usage"][name])
        if 0 <= used <= _MOST_TOKENS:
          counts[name] += used
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    finish_reason = choice.get("finish_reason")
  except _NOT_AN_ANSWER:
    return _Reply(None, "answered with something that is no chat completion")
  if finish_reason in ("length", "content_filter"):  # the word at its end may be the beginning of another
    return _Reply(None, f"answered with a text that was cut off ({finish_reason}); see the limits in request")
  if not isinstance(text, str):
    return _Reply(None, "answered without a text")
  return _Reply(text)


class _HttpAnswer(NamedTuple):
  """An answer to an HTTP request."""

  status: int
  retry_after: float  # the header Retry-After in seconds from now; 0 without one
  body: bytes  # one byte longer than _MOST_BYTES where the whole body is longer


def _post(url, body: bytes, headers: dict[str, str], seconds: float) -> _HttpAnswer:
  """Sends a POST request and reads the answer. TimeoutError after so many seconds, however slowly the answer drips.

  Redirects are not followed and proxies not used: the key goes to this host and no other.
  """
  connection_type = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
  deadline = time.monotonic() + seconds
  connection = connection_type(url.hostname, url.port, timeout=seconds)
  with contextlib.closing(connection):
    connection.connect()
    guard = threading.Timer(deadline - time.monotonic(), _shut_down, (connection.sock,))
    guard.daemon = True
    guard.start()
    try:
      connection.request("POST", url.path, body, headers)
      response = connection.getresponse()
      data = response.read(_MOST_BYTES + 1)
      if response.length and len(data) <= _MOST_BYTES:
        raise ConnectionError(None, "cut off")
    except (OSError, http.client.HTTPException):
      if time.monotonic() >= deadline:
        raise TimeoutError from None
      raise
    finally:
      guard.cancel()
    if time.monotonic() >= deadline:  # a body without a length ends where the guard cut it
      raise TimeoutError
    return _HttpAnswer(response.status, _seconds_of(response.headers.get("Retry-After", "")), data)


def _shut_down(sock: socket.socket) -> None:
  """Ends a connection from another thread, so that a read that waits returns."""
  with contextlib.suppress(OSError):
    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain method: the state of TLS belongs to another thread


def _seconds_of(retry_after: str) -> float:
  """Returns a Retry-After header, a number of seconds or an HTTP date, in seconds from now; 0 where it is neither."""
  if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", retry_after.strip()):
    return float(retry_after)
  try:
    return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
  except (ValueError, OverflowError):
    return 0.0


def _sleep(seconds: float) -> None:
  """Waits, but no longer than half a second after a signal that asks the run to stop."""
  deadline = time.monotonic() + seconds
  while not signals.stop_requested():
    seconds_left = deadline - time.monotonic()
    if seconds_left <= 0:
      return
    time.sleep(min(seconds_left, 0.5))
