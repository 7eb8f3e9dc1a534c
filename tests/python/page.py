"""Looks at a node's page in headless Chromium, which is driven through its pipe of the DevTools protocol.

page.py look URL FOLDER      looks at a page that is served
page.py made-up STATIC FOLDER  serves the files of STATIC with the stream of a made-up cluster of 10,000
                             ranges, and looks at that

Prints one JSON object: the errors of the console, texts of the page, and how long it took. FOLDER takes
screenshots: light, dark, and as wide as a phone.
"""

import base64
import fcntl
import http.server
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TIMEOUT_S = 60
NAMES = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe"]
NASTY = "<script>window.hacked=1</script>\"'&\n<img src=x onerror=hacked=1>"


class Browser:
    """Chromium with one page, and what that page complained of."""

    def __init__(self, program, folder):
        (orders, self.orders), (self.answers, answers) = os.pipe(), os.pipe()
        # Out of the way of 3 and 4, which Chromium expects.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (orders, answers)]
        os.close(orders), os.close(answers)

        def place():
            os.dup2(high[0], 3), os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(3, 4), preexec_fn=place, start_new_session=True)
        os.close(high[0]), os.close(high[1])
        self.buffer, self.number, self.session, self.errors = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self):
        while b"\0" not in self.buffer:
            part = os.read(self.answers, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **params):
        self.number += 1
        order = {"id": self.number, "method": method, "params": params}
        if self.session:
            order["sessionId"] = self.session
        os.write(self.orders, json.dumps(order).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.note(message)

    def note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")

    def eval(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression):
        begun = time.monotonic()
        while not self.eval(expression):
            if time.monotonic() - begun > TIMEOUT_S:
                text = self.eval("document.body.innerText")
                raise RuntimeError(f"never: {expression}; errors {self.errors}; page {text[:2000]}")
            time.sleep(0.05)

    def shot(self, path, width, dark):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        before = int(self.eval("document.getElementById('main').dataset.updates"))
        self.until(f"Number(document.getElementById('main').dataset.updates) > {before + 1}")
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return size["width"]

    def end(self):
        self.process.terminate()
        self.process.wait()
        # Helper processes of the browser may still write to its folder.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def look(program, url, folder, columns):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            browser.call("Emulation.setDeviceMetricsOverride", width=1360, height=900, deviceScaleFactor=1, mobile=False)
            browser.call("Page.navigate", url=url)
            browser.until("document.getElementById('main')?.dataset.updates > 3")
            browser.until("document.querySelectorAll('#range-table tbody th').length > 0")
            browser.until("document.querySelectorAll('#node-table tbody th').length > 0")
            browser.until(f"document.getElementById('main').dataset.updates > {columns}")
            browser.until("document.getElementById('history-note').textContent.includes('minutes of')")
            # The arrow keys read out the heat map.
            browser.eval("document.getElementById('heat').focus()")
            for key in ("ArrowLeft", "ArrowDown"):
                browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            read = browser.eval("document.getElementById('heat-read').textContent")
            browser.eval("document.getElementById('heat').blur()")
            widths = {name: browser.shot(folder / f"{name}.png", width, dark) for name, width, dark in
                      (("phone", 390, False), ("dark", 1360, True), ("light", 1360, False))}
            found = {
                "errors": browser.errors,
                "hacked": browser.eval("window.hacked ?? null"),
                "text": browser.eval("document.body.innerText"),
                "read": read,
                "widths": widths,
                "foreign_elements": browser.eval("document.querySelectorAll('main script, main img').length"),
                "first_paint_ms": browser.eval("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"),
                "last_ms": float(browser.eval("document.getElementById('main').dataset.lastMs")),
                "worst_ms": float(browser.eval("document.getElementById('main').dataset.worstMs")),
                "updates": int(browser.eval("document.getElementById('main').dataset.updates")),
                "history": browser.eval("document.getElementById('history-note').textContent"),
                "missing": browser.eval("[...document.querySelectorAll('#history-missing li')].map((item) => item.textContent)"),
                "missing_is_live": browser.eval("document.getElementById('history-missing').ariaLive"),
                "events_of": browser.eval("[...document.querySelectorAll('#events tbody tr')].map((row) => row.cells[1].textContent)"),
            }
            # Filter and pages, by what a person does.
            browser.eval("const find = document.getElementById('range-find'); find.value = 'node=2'; find.dispatchEvent(new Event('input'))")
            found["filtered"] = browser.eval("document.getElementById('ranges-count').textContent")
            found["page_before"] = browser.eval("document.getElementById('page-at').textContent")
            browser.eval("document.getElementById('page-on').click()")
            found["page_after"] = browser.eval("document.getElementById('page-at').textContent")
            return found
        finally:
            browser.end()


# ---- The made-up cluster

RANGES, NODES, SHARDS = 10_000, 6, 2


def made_up_place(at, k):
    node, lag = 1 + (at + k) % NODES, at % 7 * (at % 97 == 0 and k > 0)
    if node == NODES:
        return [node, at % SHARDS, True, None, "dead"]
    return [node, at % SHARDS] if lag == 0 else [node, at % SHARDS, True, lag, "ok"]


def made_up_view(tick):
    nodes = [{"id": n, "address": f"10.0.0.{n}:7400" if n != 4 else NASTY, "http": f"10.0.0.{n}:7480" if n != 5 else "", "state": "dead" if n == 6 else "alive",
              "shards": SHARDS, "leaders": RANGES // NODES, "replicas": RANGES // 2, "started_ms": 1_760_000_000_000,
              "version": "0.1.0"} for n in range(1, NODES + 1)]
    ranges = [[1, 1, "", 1, 0, 3, 900, [[1, 0, True, 0, "ok"]], [9_000, 8_000, 0, 0, 0]]]
    for at in range(RANGES):
        leader = 1 + (at + (tick > 10 and at % 997 == 0)) % (NODES - 1)
        places = [made_up_place(at, k) for k in range(3)]
        if at % 1000 == 7:
            places.append([1 + (at + 3) % NODES, 1, False, 1234 + at, "ok"])
        under = any(place[-1] == "dead" for place in places)
        start = "" if at == 0 else NASTY if at == 1 else f"user/{at:06}/profile"
        ranges.append([at + 10, under << 1, start, leader, at % SHARDS, 3, 5000 + at, places, [at << 14, at << 13, at % 300, at % 40, at % 9]])
    reasons = [{"health": "degraded", "range": at + 13, "nodes": [6], "reason": "its replicas on node 6: dead"} for at in range(99)]
    reasons.append({"health": "degraded", "range": None, "nodes": [6], "reason": f"the node is dead {NASTY}"})
    status = {"health": "degraded", "cluster": "c0ffee", "ranges": RANGES + 1, "under_replicated": 5_000, "unavailable": 0,
              "reasons": reasons, "replicas_in_trouble": [], "system_leader": {"node": 1, "shard": 0}, "nodes": nodes}
    return {"status": status, "reasons": 5_001, "ranges": ranges}


def latencies(rng, middle_us, number):
    found = {}
    for _ in range(300):
        us = math.exp(rng.gauss(math.log(middle_us), 0.5)) * (8 if rng.random() < 0.01 else 1)
        bucket = max(0, math.ceil(math.log2(us) * 16))
        found[bucket] = found.get(bucket, 0) + number // 300
    return [part for pair in sorted(found.items()) for part in pair]


def made_up_second(rng, tick, t):
    shards = []
    for shard in range(SHARDS):
        wave = 1 + 0.3 * math.sin(tick / 20 + shard)
        hot = 4_000 + int(1_500 * math.sin(tick / 30))
        load = [[at + 10, int(900 * math.exp(-abs(at - hot) / 60) + (at * 7919 % 13) * wave), int(120 * math.exp(-abs(at - 8_000) / 200) + at % 3)]
                for at in range(shard * 5, RANGES, 5 * SHARDS)]
        shards.append({
            "seconds": 1.0,
            "ops": [["get", latencies(rng, 90 * wave, 42_000)], ["put", latencies(rng, 900 * wave, 9_000)], ["scan", latencies(rng, 2_000, 900)], ["status", latencies(rng, 300, 300)]],
            "refused": [["overloaded", 3]] if tick % 9 == 0 else [[NASTY, 1]] if tick % 50 == 0 else [],
            "in_flight": 12,
            "thread": {"busy": 0.55 * wave, "stall_longest_ms": 18.4, "stalls": [["shard::Compaction", int(tick % 31 == 0), tick // 31], [NASTY, 0, 1]]},
            "ranges": {"held": RANGES // 2, "led": RANGES // 5, "waiting": 4, "in_flight": 2},
            "wal": {"writes": 1800, "records": 9_100, "bytes": 7_400_000, "latency": latencies(rng, 420, 1_800), "pending_bytes": 4096, "segments": 9,
                    "live_bytes": 230 << 20, "pinned_bytes": 0, "replay_bytes": 61 << 20},
            "tree": {"frozen": 1, "tables": 212, "bytes": 13 << 30, "level0_runs": 3, "flushes": 88 + tick // 40, "compactions": 41, "cold_reads": 12,
                     "pressure": 0.12, "disk_full": False, "starved": False},
            "memory": [["memtables", 61 << 20, 128 << 20, 0, 0], ["row_cache", 400 << 20, 512 << 20, 30_000, 8_000], ["block_cache", 250 << 20, 256 << 20, 8_000, 120],
                       ["raft", 37 << 20, 64 << 20, 0, 0], ["connections", 3 << 20, 64 << 20, 0, 0]],
            "load": load,
        })
    return {"t": t, "node": 1, "cluster": "c0ffee", "version": "0.1.0", "uptime_s": 200_000 + tick, "ready": True, "state": "ready", "disk": [180 << 30, 400 << 30],
            "clock": [True, 1800], "connections": [214, 40], "refused_by": {}, "shards": shards}


def made_up_history():
    now = int(time.time() * 1000) // 60_000 * 60_000
    minutes = [{"t": str(now - (1440 - at) * 60_000), "ops": int(4e6 * (1.2 + math.sin(at / 200))), "errors": at % 3, "p50_us": 90 + at % 7,
                "p99_us": 900 + at % 50, "p999_us": 4_000 + at % 900} for at in range(1440)]
    events = [{"t": str(now - at * 7_000_000), "node": 1 + at % 3, "kind": "election", "text": f"range {at} has a leader {NASTY if at == 3 else ''}"} for at in range(12)]
    missing = [{"node": n, "address": f"10.0.0.{n}:7400", "reason": f"no answer {NASTY if n == 4 else ''}"} for n in (4, 5, 6)]
    return {"nodes": [1, 2, 3], "missing_nodes": missing, "minutes": minutes, "hours": [], "events": events, "dropped": 0}


def serve_made_up(static, speed):
    """Serves the page and the stream; seconds of the stream take 1 / speed seconds."""
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    policy = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/api/v1/stream":
                return self.stream()
            if self.path.partition("?")[0] == "/api/v1/history/all":
                return self.give("application/json", json.dumps(made_up_history()).encode())
            path = static / ("index.html" if self.path == "/" else self.path.lstrip("/"))
            if not path.is_file():
                return self.send_error(404)
            self.give(kinds[path.suffix], path.read_bytes())

        def give(self, kind, body):
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Content-Security-Policy", policy)):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def stream(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            rng, begun = random.Random(7), int(time.time() * 1000)
            try:
                for tick in range(1_000_000):
                    if tick % 5 == 0:
                        self.event("view", made_up_view(tick))
                    self.event("second", made_up_second(rng, tick, begun + tick * 1000))
                    time.sleep(1 / speed)
            except OSError:
                pass  # the page was closed

        def event(self, name, data):
            self.wfile.write(f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/"


def main(how, what, folder):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        print(json.dumps({"skipped": "chromium is not installed"}))
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if how == "look":
        found = look(program, what, folder, 8)
    else:
        found = look(program, serve_made_up(pathlib.Path(what), 20), folder, 150)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
