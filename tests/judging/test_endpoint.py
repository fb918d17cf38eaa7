"""The client of chat completions against a server that does everything wrong that a server can do."""

import json
import logging
import socket
import struct
import time
from email.utils import formatdate

import pytest

from helpers.serving import completion, send
from jaxrlvr.base.errors import InputError
from jaxrlvr.judging import endpoint
from jaxrlvr.judging.endpoint import Client, Endpoint

KEY = "sk-very-secret-0123456789"


def echo(handler, number, request):
  send(handler, body=completion(request["messages"][0]["content"]))


def client(server, **changes):
  settings = dict(timeout_seconds=5.0, deadline_seconds=20.0, backoff_seconds=0.01, retries=3)
  return Client(Endpoint(server if isinstance(server, str) else server.url, "m", **settings | changes))


@pytest.fixture
def waits(monkeypatch):
  """The list of seconds that the client waits between its calls; in the test these take no time."""
  seconds = []
  monkeypatch.setattr(endpoint, "_sleep", seconds.append)
  return seconds


def test_texts_come_in_order_and_no_more_calls_than_allowed_are_in_flight(serve):
  now, most = [], []

  def slow(handler, number, request):
    now.append(number)
    most.append(len(now))
    time.sleep(0.02 * (1 + number % 3))
    now.remove(number)  # before the client can know, so that it is never counted twice
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    send(handler, body=completion(request["messages"][0]["content"], usage=usage))

  server = serve(slow)
  c = client(server, concurrency=3, request='{"temperature": 0, "seed": 7}')
  assert list(c([f"q{i}" for i in range(12)])) == [f"q{i}" for i in range(12)]
  assert max(most) == 3
  assert c.counts == {"calls": 12, "retries": 0, "prompt_tokens": 36, "completion_tokens": 24}
  assert server.requests[0].keys() == {"model", "messages", "temperature", "seed"} and server.requests[0]["seed"] == 7
  assert set(server.keys) == {None}


def reset(handler, number, request):
  handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
  handler.connection.close()
  handler.close_connection = True


def cut(handler, number, request):
  handler.send_response(200)
  handler.send_header("Content-Length", "1000")
  handler.end_headers()
  handler.wfile.write(completion("half"))
  handler.close_connection = True


def negative(handler, number, request):
  handler.send_response(200)
  handler.send_header("Transfer-Encoding", "chunked")
  handler.end_headers()
  handler.wfile.write(b"-5\r\nabc\r\n")
  handler.close_connection = True


@pytest.mark.parametrize(
  "trouble",
  [reset, cut, negative, *(lambda h, n, r, status=status: send(h, status) for status in (408, 429, 500, 502, 503))],
)
def test_what_may_pass_is_tried_again(serve, waits, trouble):
  server = serve(lambda h, n, r: trouble(h, n, r) if n < 3 else echo(h, n, r))
  c = client(server)
  assert list(c(["q"])) == ["q"]
  assert (c.counts["calls"], c.counts["retries"], len(waits)) == (3, 2, 2)


def test_a_slow_call_is_given_up_and_tried_again(serve, waits):
  server = serve(lambda h, n, r: (time.sleep(0.5 if n == 1 else 0), echo(h, n, r)))
  c = client(server, timeout_seconds=0.15)
  assert list(c(["q"])) == ["q"] and c.counts["retries"] == 1


def test_waits_grow_with_full_jitter_up_to_a_limit(serve, waits):
  c = client(serve(lambda h, n, r: send(h, 503)), retries=8, backoff_seconds=4.0, deadline_seconds=1e6, concurrency=1)
  assert list(c(["a", "b"])) == [None, None] and c.counts["calls"] == 18
  limits = [min(30.0, 4.0 * 2**i) for i in range(8)] * 2
  assert all(0 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
  assert len(set(waits)) == 16 and max(waits[3:8]) > 8  # 16 draws; five of up to 30 are all below 8 once in 700


def test_retry_after_is_honoured(serve, waits):
  dates = {1: "7", 2: formatdate(time.time() + 11, usegmt=True), 3: "soon"}
  server = serve(lambda h, n, r: send(h, 429, Retry_After=dates[n]) if n in dates else echo(h, n, r))
  assert list(client(server)(["q"])) == ["q"]
  assert waits[0] == 7.0 and 9 <= waits[1] <= 11 and waits[2] < 0.05
  waits.clear()
  late = client(serve(lambda h, n, r: send(h, 429, Retry_After="3600")), deadline_seconds=5.0)
  assert list(late(["q"])) == [None] and late.counts["calls"] == 1 and waits == []


@pytest.mark.parametrize("status", [400, 404, 401, 403, 402, 413, 422, 302])
def test_what_will_not_pass_is_asked_once_and_told_once(serve, caplog, status):
  server = serve(lambda h, n, r: send(h, status, Location="http://127.0.0.1:9/elsewhere"))
  c = client(server, concurrency=1)
  assert list(c(["a", "b", "c"])) == [None] * 3
  hopeless = status not in (400, 413, 422)
  assert len(server.requests) == c.counts["calls"] == (1 if hopeless else 3) and c.counts["retries"] == 0
  assert len(caplog.records) == 1 and str(status) in caplog.text and server.url in caplog.text
  assert (";" in caplog.text) == hopeless  # the cure


GARBAGE = {
  "no JSON": b"<html>",
  "not UTF-8": b'{"choices": "\xff"}',
  "empty": b"",
  "no choices": b'{"choices": []}',
  "no object": b"[1]",
  "null": b"null",
  "no message": b'{"choices": [{"text": "VERDICT"}]}',
  "no text": completion(None),
  "a number": completion(1),
  "deep": b"[" * 100_000,
  **{ended: completion("VERDICT m: 0", ended) for ended in ("length", "content_filter")},
  "infinite usage": b'{"usage": {"prompt_tokens": Infinity, "completion_tokens": "x"}, "choices": []}',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_text(serve, body):
  c = client(serve(lambda h, n, r: send(h, body=body)))
  assert list(c(["q"])) == [None] and c.counts["calls"] == 1


def test_usage_that_can_not_be_is_not_counted(serve):
  usage = {"prompt_tokens": 10**400, "completion_tokens": 7}
  c = client(serve(lambda h, n, r: send(h, body=completion("x", "stop", usage=usage))))
  assert list(c(["q"])) == ["x"] and (c.counts["prompt_tokens"], c.counts["completion_tokens"]) == (0, 7)


def test_a_huge_body_is_not_read_to_its_end(serve, caplog):
  sent = []

  def flood(handler, number, request):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(completion("x")[:-1])
    for _ in range(400):
      handler.wfile.write(b" " * (1 << 20))
      sent.append(1)

  c = client(serve(flood))
  assert list(c(["q"])) == [None] and "more than 1048576 bytes" in caplog.text
  assert len(sent) < 100


@pytest.mark.parametrize("where", ["headers", "body", "endless body"])
def test_a_dripping_answer_ends_with_its_time(serve, where):
  def drip(handler, number, request):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"X: " if where == "headers" else b""))
    if where != "headers":
      handler.wfile.write(b"Content-Length: 999\r\n\r\n" if where == "body" else b"\r\n")
      handler.wfile.write(completion("x") if where == "endless body" else b"")
    for _ in range(200):
      handler.wfile.write(b" ")
      time.sleep(0.02)

  c = client(serve(drip), timeout_seconds=0.3, retries=0)
  begun = time.monotonic()
  assert list(c(["q"])) == [None]
  assert 0.25 < time.monotonic() - begun < 1.0


def test_the_deadline_covers_all_retries(serve):
  c = client(serve(lambda h, n, r: send(h, 500)), deadline_seconds=0.4, retries=12, backoff_seconds=0.05)
  begun = time.monotonic()
  assert list(c(["q"])) == [None]
  assert time.monotonic() - begun < 0.9 and c.counts["calls"] >= 2


def test_an_outage_ends_after_a_while_and_is_told_once(serve, caplog):
  server = serve(echo)
  server.close()  # nobody listens there now
  c = client(server, concurrency=2, retries=1)
  assert list(c([f"q{i}" for i in range(60)])) == [None] * 60
  assert c.counts["calls"] < 30 and caplog.text.count("can't be reached (Connection refused)") == 1
  assert "nothing is asked any more" in caplog.text
  assert list(c(["late"])) == [None]


@pytest.mark.parametrize("between", [200, 400])
def test_one_answer_in_between_is_no_outage(serve, between):
  server = serve(lambda h, n, r: send(h, 500 if n % 9 else between))
  c = client(server, concurrency=1, retries=0)
  assert list(c(["q"] * 40)) == [None] * 40 and len(server.requests) == 40


def test_the_key_is_sent_and_shown_nowhere(serve, monkeypatch, caplog, capfd):
  monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
  body = json.dumps({"error": {"message": f"{KEY} may not \x1b[31m"}}).encode()
  server = serve(lambda h, n, r: send(h, (400, 401)[n - 1], body))
  caplog.set_level(logging.DEBUG)
  c = client(server, key_variable="JUDGE_KEY", concurrency=1)
  assert list(c(["q", "r"])) == [None, None] and server.keys == [f"Bearer {KEY}"] * 2
  assert "*** may not \\x1b" in caplog.text and "401 Unauthorized; see the key in the environment" in caplog.text
  assert "'JUDGE_KEY'" in caplog.text
  shown = caplog.text + "".join(capfd.readouterr()) + repr(Endpoint(server.url, "m", "JUDGE_KEY")) + c.identity
  assert KEY not in shown
  for bad in ("two words", "a\nb", "\u2713", ""):
    monkeypatch.setenv("JUDGE_KEY", bad)
    with pytest.raises(InputError, match="JUDGE_KEY") as error:
      client(server, key_variable="JUDGE_KEY")
    assert not bad or bad not in str(error.value)
  monkeypatch.delenv("JUDGE_KEY")
  with pytest.raises(InputError, match="JUDGE_KEY is not set"):
    client(server, key_variable="JUDGE_KEY")


@pytest.mark.parametrize(
  "url",
  [
    "",
    "localhost:8000/v1",
    "ftp://host/v1",
    "file:///etc/passwd",
    "http://",
    "http://h:99999/v1",
    "http://a..b/v1",
    "http://h/v 1",
    "http://h/\u00e9",
    "https://me:hunter2@h/v1",
    "https://h/v1?key=hunter2",
    "https://h/v1#hunter2",
  ],
)
def test_urls_that_can_not_be_used(url):
  with pytest.raises(InputError, match="url") as error:
    Endpoint(url, "m")
  assert "hunter2" not in str(error.value)


def test_other_input_that_can_not_be_used():
  with pytest.raises(InputError, match="name both"):
    Endpoint("http://h/v1", "")
  for request in ("", "[1]", "{'a': 1}"):
    with pytest.raises(InputError, match="no JSON object"):
      Endpoint("http://h/v1", "m", request=request)
