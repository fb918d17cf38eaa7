"""A chat-completions endpoint that answers as a test tells it to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
  """An endpoint that calls `play(handler, number, request)` to answer request number 1, 2, ..."""

  def __init__(self, play):
    self.requests, self.keys = [], []
    lock, server = threading.Lock(), self

    class Handler(BaseHTTPRequestHandler):
      def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
          server.requests.append(request)
          server.keys.append(self.headers["Authorization"])
          number = len(server.requests)
        try:
          play(self, number, request)
        except OSError:
          self.close_connection = True  # the client went away

      def log_message(self, *_):
        pass

    self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()


def send(handler, status=200, body=b"", **headers):
  handler.send_response(status)
  for name, value in headers.items():
    handler.send_header(name.replace("_", "-"), value)
  handler.send_header("Content-Length", str(len(body)))
  handler.end_headers()
  handler.wfile.write(body)


def completion(text, ended="stop", **more):
  return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": ended}], **more}).encode()
