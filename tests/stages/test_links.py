"""The runner that `chain` and `grid` share: what it starts and when, on executors that run nothing."""

import pytest

from jaxrlvr.base import signals
from jaxrlvr.stages.links import InThisProcess, Link, run_links


class Scripted:
  """An executor whose links end one at a time, in the order of their start, with the exit codes of a table."""

  def __init__(self, places, codes=(), busy=()):
    self.places, self.codes, self.busy = places, dict(codes), list(busy)
    self.running, self.started, self.at_once, self.stopped = [], [], 0, False

  def is_free(self, link):
    return link.name not in self.busy

  def start(self, link):
    self.running.append(link.name)
    self.started.append(link.name)
    self.at_once = max(self.at_once, len(self.running))

  def ended(self):
    if not self.running:
      return {}
    name = self.running.pop(0)
    return {name: self.codes.get(name, 0)}

  def wait(self):
    self.busy = []  # whoever was at work there has ended

  def stop(self):
    self.stopped = True


def links(**needs):
  return [Link(name, "rl", None, frozenset(of)) for name, of in needs.items()]


GRAPH = links(a="", b="a", c="", d="b", e="ac")


def never():
  pass


def test_links_start_once_those_that_they_need_are_done():
  for places, order in ((1, "abcde"), (2, "acbed"), (9, "acbed")):
    executor, shown = Scripted(places), []
    assert run_links(GRAPH, executor, never, show=shown.append) == (set("abcde"), {})
    assert "".join(executor.started) == order and shown == [1, 2, 3, 4, 5]
    assert executor.at_once == min(places, 2) and not executor.stopped


def test_what_needs_a_failed_link_is_left_out_and_what_is_done_is_not_run():
  executor = Scripted(1, {"b": 3})
  assert run_links(GRAPH, executor, never, done="a") == (set("ace"), {"b": 3})
  assert executor.started == ["b", "c", "e"]


def test_a_link_that_is_not_free_is_started_later():
  executor = Scripted(1, busy="a")
  assert run_links(GRAPH, executor, never) == (set("abcde"), {})
  assert executor.started == list("cabde")


def test_who_is_asked_to_stop_starts_nothing_more():
  asked = iter((False, True))

  def raise_if_asked():
    if next(asked):
      raise signals.Interrupted("stopped")

  executor = Scripted(1)
  with pytest.raises(signals.Interrupted):
    run_links(GRAPH, executor, raise_if_asked)
  assert executor.started == ["a"] and executor.stopped


def test_in_this_process_links_run_in_the_order_of_the_chain_and_an_error_ends_it(tmp_path):
  ran = []

  def stage(config, workdir):
    ran.append(workdir.name)
    if workdir.name == "d":
      raise ValueError("d")
    return {"of": workdir.name}

  executor = InThisProcess(tmp_path, {"rl": stage})
  with pytest.raises(ValueError, match="d"):
    run_links(GRAPH, executor, never)
  assert ran == list("abcd") and executor.summaries == {name: {"of": name} for name in "abc"}
