"""Drives a headless Chromium over two pipes, without any package, for tests of the report where one is installed."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
  """Returns the path of a Chromium, or None."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
  """One page of a browser: `call` calls a method of the DevTools protocol; `events` are those that came meanwhile."""

  def __init__(self, read, write):
    self._read, self._write, self._id, self._rest, self._session = read, write, 0, b"", {}
    self.events = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method, **params):
    self._id += 1
    message = {"id": self._id, "method": method, "params": params} | self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == self._id:
        assert "error" not in answer, answer
        return answer["result"]
      self.events.append(answer)

  def _next(self, seconds=30):
    end = time.monotonic() + seconds
    while b"\0" not in self._rest:
      if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
        raise TimeoutError(f"no answer from the browser in {seconds} s")
      received = os.read(self._read, 1 << 20)
      assert received, "the browser ended"
      self._rest += received
    message, _, self._rest = self._rest.partition(b"\0")
    return json.loads(message)

  def open(self, url):
    """Loads a page and waits until it is loaded."""
    before = len(self.events)
    self.call("Page.navigate", url=url)
    while not any(e.get("method") == "Page.loadEventFired" for e in self.events[before:]):
      self.events.append(self._next())

  def value(self, script):
    """Returns the value of a JavaScript expression in the page."""
    answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")


@contextlib.contextmanager
def tab(program, profile):
  """Yields a tab of a new browser, which ends with the block."""
  to_read, to_write = os.pipe()
  from_read, from_write = os.pipe()
  command = [
    program,
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    f"--user-data-dir={profile}",
    "--remote-debugging-pipe",
  ]
  shell = ["sh", "-c", f'exec "$@" 3</proc/self/fd/{to_read} 4>/proc/self/fd/{from_write}', "sh"]
  quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  with subprocess.Popen([*shell, *command], pass_fds=(to_read, from_write), **quiet) as process:
    os.close(to_read)
    os.close(from_write)
    try:
      yield Tab(from_read, to_write)
    finally:
      process.kill()
      os.close(to_write)
      os.close(from_read)
