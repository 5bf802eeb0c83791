"""A served run under load, beside the same engine called directly: in batches, and one question after the other.

    python tools/bench/serve.py --run pocket --requests 200 --out FILE
    python tools/bench/serve.py --run runs/hidecmoe --disturbed 10000 --clients 32 --killed 0.01 --out FILE

`hidecmoe serve` runs in a process of its own and is asked over loopback by threads that wait for each answer.
Questions are test questions of the pocket stream, which are drawn on the spot. Then `--disturbed` requests with
clients that go away in the middle of a request (`--killed`, a share of all) and a SIGTERM after nine of ten requests:
every request that was sent must be answered once, with the answer of the engine, or refused; what the server had
accepted must be answered. The server keeps its decision log, which must be whole and have every answer exactly once.
Beside wall time stands the processor time of a request, which other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from batches import questions

import hidecmoe_jax as hj
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.operate.decision_log import check, read_log
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.serve.shapes import smallest
from hidecmoe_jax.serve.versions import Version, open_version

PATH = "/v1/chat/completions"
HEADERS = {"content-type": "application/json"}
START_SECONDS = 1200


def body_of(item: dict) -> bytes:
    """A question as a request."""
    picture = base64.b64encode(Path(item["image"]).read_bytes()).decode()
    parts = [
        {"type": "text", "text": item["text"]},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": parts}]}).encode()


def summary(seconds: list[float], wall: float, cpu: float) -> dict[str, float]:
    """Numbers of a pass: requests a second, percentiles of the time to an answer, processor time of a request."""
    p50, p95 = np.percentile(seconds, [50, 95])
    count = len(seconds)
    return {
        "requests_a_second": round(count / wall, 2), "p50_ms": round(1000 * p50, 1), "p95_ms": round(1000 * p95, 1),
        "cpu_ms_a_request": round(1000 * cpu / count, 1),
    }  # fmt: skip


def direct(version: Version, records: list[Record], size: int) -> tuple[dict[str, float], list[str]]:
    """The engine without a server, in batches of `size` of one shape; numbers and texts."""
    by_shape: dict = {}
    for place, record in enumerate(records):
        _, length = version.prompt_tokens(record, None)
        shape = smallest(version.shapes, pictures=len(record.images), length=length)
        by_shape.setdefault(shape, []).append(place)
    texts = [""] * len(records)
    seconds = []
    began, cpu = time.perf_counter(), time.process_time()
    for shape, places in by_shape.items():
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            since = time.perf_counter()
            for place, reply in zip(batch, version.replies([records[place] for place in batch], shape), strict=True):
                texts[place] = reply.text
            seconds += [time.perf_counter() - since] * len(batch)
    return summary(seconds, time.perf_counter() - began, time.process_time() - cpu), texts


@dataclass
class Server:
    """A server process and where it listens."""

    process: subprocess.Popen
    port: int

    def cpu(self) -> float:
        """Processor time of the process so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        finally:
            connection.close()


def start(run: str, clients: int, batch: int, log: Path) -> Server:
    """A server that is ready."""
    words = ["serve", run, "--port", "0", "--batch", str(batch), "--max-waiting", str(4 * clients), "--timeout", "600"]
    words += ["--log", str(log)]
    process = subprocess.Popen([sys.executable, "-m", "hidecmoe_jax", *words], stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    if not first.startswith("http://"):
        raise SystemExit(first)
    server = Server(process, int(first.split("/")[2].rpartition(":")[2]))
    until = time.monotonic() + START_SECONDS
    while not server.is_ready():
        if time.monotonic() > until or process.poll() is not None:
            raise SystemExit("the server did not become ready")
        time.sleep(0.5)
    return server


def asked(server: Server, body: bytes) -> tuple[str, dict | None]:
    """Outcome and answer of a request by a client that waits: answered, refused, or not accepted."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        connection.connect()
    except OSError:
        return "not accepted", None
    try:
        connection.request("POST", PATH, body, HEADERS)
        response = connection.getresponse()
        value = json.loads(response.read())
    except (OSError, http.client.HTTPException):
        # Nothing of an answer came: where the server still listened, that is a lost one.
        return "lost", None
    finally:
        connection.close()
    if response.status != 200:
        return f"refused {response.status}", None
    return "answered", value


def text_of(value: dict | None) -> str | None:
    """Text of an answer."""
    return None if value is None else value["choices"][0]["message"]["content"]


def left(server: Server, body: bytes) -> tuple[str, None]:
    """A client that goes away after it has sent a request, without a farewell."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    except OSError:
        return "not accepted", None
    return "went away", None


def loaded(server: Server, bodies: list[bytes], clients: int) -> tuple[dict[str, float], list[str | None]]:
    """All requests from so many clients at once; numbers and texts."""
    seconds = []

    def one(body: bytes) -> str | None:
        since = time.perf_counter()
        _, value = asked(server, body)
        seconds.append(time.perf_counter() - since)
        return text_of(value)

    began, cpu = time.perf_counter(), server.cpu()
    with ThreadPoolExecutor(clients) as threads:
        texts = list(threads.map(one, bodies))
    return summary(seconds, time.perf_counter() - began, server.cpu() - cpu), texts


def disturbed(server: Server, bodies: list[bytes], texts: list[str], clients: int, killed: float, log: Path) -> dict:
    """All requests with clients that go away and a SIGTERM before the end; what became of each, and of the log."""
    draws = np.random.default_rng(0).random(len(bodies))
    done = Counter()
    wrong = []
    answered = []
    stopped = threading.Event()

    def one(place: int) -> None:
        if place == 9 * len(bodies) // 10:
            stopped.set()
            server.process.send_signal(signal.SIGTERM)
        is_late = stopped.is_set()
        ask: Callable = left if draws[place] < killed else asked
        outcome, value = ask(server, bodies[place])
        # The system may take a connection that the server, as it closes, never sees.
        done["not accepted" if outcome == "lost" and is_late else outcome] += 1
        if value is not None:
            answered.append(value["hidecmoe"]["request_id"])
            if text_of(value) != texts[place]:
                wrong.append(place)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(one, range(len(bodies))))
    exit_code = server.process.wait(timeout=120)
    logged = Counter(line["id"] for line in read_log(log) if line["kind"] == "answer")
    return {
        "requests": len(bodies), "outcomes": dict(done), "other_answers": len(wrong), "exit_code": exit_code,
        "log": {
            "lines": check(log).head.n, "answers": len(logged), "doubled": sum(count > 1 for count in logged.values()),
            "answered_but_not_logged": len(set(answered) - set(logged)),
        },
    }  # fmt: skip


def repeated(items: list, count: int) -> Iterator:
    """So many items, from the first one again after the last."""
    for place in range(count):
        yield items[place % len(items)]


def main() -> None:
    """Loads a server that is started here, and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="pocket", help="run folder, or base model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--disturbed", type=int, help="requests of the disturbed pass; as --requests if not given")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--killed", type=float, default=0.01, help="share of clients that go away")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        items = list(repeated(questions(Path(folder) / "pocket", min(options.requests, 70)), options.requests))
        document = measured(options, items, Path(folder) / "log")
    print(json.dumps(document, indent=1))
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def measured(options: argparse.Namespace, items: list[dict], log: Path) -> dict:
    """All passes."""
    version = open_version(Path(options.run), hj.ServeOptions(batch=options.batch))
    version.warm_up()
    records = list(records_of([[item["image"]] for item in items], [item["text"] for item in items]))
    in_batches, texts = direct(version, records, options.batch)
    one_by_one, alone = direct(version, records, 1)
    bodies = [body_of(item) for item in items]
    server = start(options.run, options.clients, options.batch, log)
    over_http, served = loaded(server, bodies, options.clients)
    document = {
        "run": options.run, "requests": len(items), "clients": options.clients, "batch": options.batch,
        "engine_in_batches": in_batches, "engine_one_by_one": one_by_one, "served": over_http,
        "other_answers": {
            "one_by_one": sum(map(str.__ne__, texts, alone)),
            "served": sum(text != expected for text, expected in zip(served, texts, strict=True)),
        },
    }  # fmt: skip
    count = options.disturbed or len(bodies)
    bodies = list(repeated(bodies, count))
    texts = list(repeated(texts, count))
    return document | {"disturbed": disturbed(server, bodies, texts, options.clients, options.killed, log)}


if __name__ == "__main__":
    main()
