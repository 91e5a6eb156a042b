"""A stand-in for a served model: an OpenAI-compatible HTTP server on loopback that requires a key.

It "rephrases" and solves problems of the kind "Tom has 3 apples and buys 4 more. How many apples does Tom have?", and
answers with faults on demand. Its answers depend on the request alone, so every run can be compared with every other.

Run as a program it prints its address and serves until standard input ends.
"""

import argparse
import json
import re
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-stand-in-7f3a9c"
MODEL = "stand-in"
NAMES = ("Tom", "Ada", "Mia", "Leo", "Zoe", "Max", "Eva", "Ben")
THINGS = ("apples", "coins", "books", "shells")


def problem(number):
    """A problem with its solution; the first 2,500 differ."""
    one, other = number % 50 + 2, number // 50 + 3
    name, thing = NAMES[number % len(NAMES)], THINGS[number // 7 % len(THINGS)]
    question = (
        f"{name} has {one} {thing} in a box and buys {other} more at the shop. How many {thing} does {name} have?"
    )
    total = one + other
    answer = f"{name} starts with {one} {thing}. With {other} more there are {one} + {other} = {total}.\n#### {total}"
    return {"question": question, "answer": answer}


def write_problems(path, count, more=()):
    rows = [*map(problem, range(count)), *more]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def result(question):
    """What the problem asks for."""
    if "unknown" in question:
        *others, total = numbers(question)
        return total - sum(others[:1])
    return sum(numbers(question)[:2])


def after(prompt, mark):
    return prompt.split(mark, 1)[1].split("\n\nSolution:\n")[0].split("\n\nAnswer: ")[0].strip()


def reply(prompt, seed):
    """What a well-behaved model says."""
    if "Rewrite the problem as a description" in prompt:
        question, final = after(prompt, "Problem:\n"), prompt.rsplit("Answer: ", 1)[1]
        return f"{question.split('. How')[0]}, so that there are {final} of them in the end."
    question = after(prompt, "Problem:\n")
    if "Write the same problem" in prompt:
        story, asked = question.split(". How many ")
        start = ("In a village", "One day", "As we know", "Last week")[seed % 4]
        return (
            f"{start}, {story.replace(' has ', ' owns ').replace(' buys ', ' later gets ')}. Find the number of {asked}"
        )
    if "Write the solution in other words" in prompt:
        one, other = numbers(question)[:2]
        total = one + other
        return f"We begin with {one} and put {other} on top of it, so the total is {total}.\nThe answer is: {total}"
    found = result(question)
    return f"Working through it step by step ({seed % 3}), we obtain {found}.\nThe answer is: {found}"


TEXT_FAULTS = {
    "wrong": lambda text, prompt: "We guess.\nThe answer is: 9999",
    "refusal": lambda text, prompt: "I'm sorry, but I can't help with that.",
    "empty": lambda text, prompt: "",
    "cut": lambda text, prompt: text,
    "copy": lambda text, prompt: after(prompt, "Problem:\n"),
    "stray": lambda text, prompt: "Bananas float gently over quiet rivers.",
    "language": lambda text, prompt: "Wir beginnen mit der Zahl und das ist nicht viele, die Zahl ist von der Frage.",
    "template": lambda text, prompt: text + "\n### User:\nAnd now?",
    "leak": lambda text, prompt: f"{text} (It is {result(after(prompt, 'Problem:'))}.)",
    "number": lambda text, prompt: re.sub(r"\d+", "some", text),
    "no answer": lambda text, prompt: "I think about it for a long time.",
    "solved": lambda text, prompt: f"{text} The answer to this problem is 20.",
    "no reasoning": lambda text, prompt: text.splitlines()[-1],
    "half": lambda text, prompt: text + " \ud83d",
    "hard": lambda text, prompt: "So.\nThe answer is: $9^{9^{9^{9}}}$",
}
"""Replies that must be dropped, by name."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def handle_error(self, request, client_address):
        """A client that was killed is no error."""


class StandInEndpoint:
    """The server.

    Args:
        latency: Seconds before each answer.
        fault: For a request (number from 0, prompt, seed), the name of a fault, or None. The names: those of
            `TEXT_FAULTS`; a status such as ``"500"``; ``"429 2"`` with Retry-After; ``hang``, ``cut stream``,
            ``malformed``, ``html``, ``no choices``, ``echo key``. For embeddings: ``count``, ``dimension``, ``nan``,
            ``text``.
        embed: The embedding of a text; None: the server has no embeddings.
        reply: What a model says to a prompt and a seed.
    """

    def __init__(self, latency=0.0, fault=lambda number, prompt, seed: None, embed=None, reply=reply):
        self.latency, self.fault, self.embed, self.reply = latency, fault, embed, reply
        self.embedded = []
        self.lock = threading.Lock()
        self.asked, self.answered = Counter(), Counter()
        self.number = self.under_way = self.most_at_once = 0
        self.times = []
        self.server = None
        self.port = 0
        self.start()

    def start(self):
        self.server = Server(("127.0.0.1", self.port), type("Handler", (Handler,), {"stand_in": self}))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stand_in: StandInEndpoint

    def log_message(self, *_):
        pass

    def send(self, status, body, content_type="application/json", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def authorized(self):
        if self.headers.get("Authorization") == f"Bearer {KEY}":
            return True
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return False

    def do_GET(self):
        if self.authorized():
            models = {"data": [{"id": MODEL, "object": "model"}]}
            self.send(200, models) if self.path == "/v1/models" else self.send(404, {"detail": "Not Found"})

    def do_POST(self):
        stand_in = self.stand_in
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.authorized():
            return
        if self.path == "/v1/embeddings" and stand_in.embed is not None:
            self.embed(body)
            return
        if self.path != "/v1/chat/completions":
            self.send(404, {"detail": "Not Found"})
            return
        if body["model"] != MODEL:
            self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        prompt, seed = body["messages"][-1]["content"], body.get("seed", 0)
        with stand_in.lock:
            number, stand_in.number = stand_in.number, stand_in.number + 1
            stand_in.asked[prompt, seed] += 1
            stand_in.times.append(time.monotonic())
            stand_in.under_way += 1
            stand_in.most_at_once = max(stand_in.most_at_once, stand_in.under_way)
        try:
            time.sleep(stand_in.latency)
            self.answer(stand_in.fault(number, prompt, seed), prompt, seed)
        finally:
            with stand_in.lock:
                stand_in.under_way -= 1

    def embed(self, body):
        """Answer a request for embeddings. A fault of a text is one of the request."""
        stand_in, texts = self.stand_in, body["input"]
        with stand_in.lock:
            stand_in.embedded.append(texts)
            number, stand_in.number = stand_in.number, stand_in.number + 1
        fault = stand_in.fault(number, "\n".join(texts), 0)
        if fault and fault[0].isdigit():
            self.send(int(fault), {"error": {"message": "not now"}})
            return
        found = [{"index": at, "embedding": list(stand_in.embed(text))} for at, text in enumerate(texts)][::-1]
        if fault == "count":
            found = found[1:]
        elif fault == "dimension":
            found[0]["embedding"].append(1.0)
        elif fault == "nan":
            found[0]["embedding"][0] = float("nan")
        elif fault == "text":
            found[0]["embedding"] = "none"
        self.send(200, b"<html></html>" if fault == "html" else {"data": found, "model": MODEL})

    def answer(self, fault, prompt, seed):
        if fault and fault[0].isdigit():
            status, *wait = fault.split(" ", 1)
            self.send(int(status), {"error": {"message": "not now"}}, **({"Retry_After": wait[0]} if wait else {}))
            return
        if fault == "hang":
            time.sleep(30)
        text = self.stand_in.reply(prompt, seed)
        if fault in TEXT_FAULTS:
            text = TEXT_FAULTS[fault](text, prompt)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "length" if fault == "cut" else "stop"}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        content = json.dumps(
            {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
        ).encode()
        if fault == "cut stream":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        nonsense = {
            "malformed": content[:-20],
            "html": b"<html><body>Welcome to nginx</body></html>",
            "no choices": b'{"choices": []}',
            "echo key": json.dumps({"error": f"bad header Bearer {KEY}"}).encode(),
        }
        if fault not in nonsense:
            with self.stand_in.lock:
                self.stand_in.answered[prompt, seed] += 1
        self.send(200, nonsense.get(fault, content), "text/html" if fault == "html" else "application/json")


@contextmanager
def stand_in_endpoint(**options):
    stand_in = StandInEndpoint(**options)
    try:
        yield stand_in
    finally:
        stand_in.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    with stand_in_endpoint(**vars(parser.parse_args())) as serving:
        print(serving.url, flush=True)
        sys.stdin.read()
