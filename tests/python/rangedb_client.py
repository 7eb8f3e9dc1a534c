"""A small client of RangeDB, written from the protocol page (`protocol/PROTOCOL.md`) and the schema.

Blocks, and holds one connection for each place. It is not meant to be fast: it is there so that a
second implementation holds the page true.
"""

import pathlib
import re
import secrets
import socket
import struct
import time

from schema import Schema

PROTOCOL = pathlib.Path(__file__).resolve().parents[2] / "protocol"
SCHEMA = Schema((PROTOCOL / "schema" / "client.fbs").read_text())
PAGE = (PROTOCOL / "PROTOCOL.md").read_text()

REQUESTS = {
    "Get": 1,
    "Batch": 6,
    "Scan": 7,
    "Directory": 8,
    "Status": 9,
    "Admin": 10,
    "MultiGet": 11,
}
REPLIES = {
    0x8001: "Value",
    0x8002: "Written",
    0x8003: "ConditionFailed",
    0x8005: "Rows",
    0x8006: "Routes",
    0x8007: "NodeState",
    0x8008: "AdminDone",
    0x8009: "Values",
    0x80FF: "Error",
}
WRITES = {"Batch"}
EXPECTED, CHANGE = SCHEMA.enums["Expected"][1], SCHEMA.enums["Change"][1]
ABSENT, VALUE, VERSION, EXISTS = (EXPECTED[name] for name in ("Absent", "Value", "Version", "Exists"))
PUT, DELETE, ADD = (CHANGE[name] for name in ("Put", "Delete", "Add"))
PROTOCOL_VERSION = 2
NOT_APPLIED, UNKNOWN = 0, 1
ANY_SHARD = 0xFFFF
WAIT_TIMEOUT = 30
KEY_MAX = 4096


def put(key, value):
    """A mutation that sets a key."""
    return {"key": key, "change": PUT, "value": value}


def delete(key):
    """A mutation that removes a key."""
    return {"key": key, "change": DELETE}


def add(key, delta):
    """A mutation that adds to a number."""
    return {"key": key, "change": ADD, "delta": delta}


def error_codes():
    """The table of errors on the page: `{name: (number, fate, retry)}`."""
    row = r"^\| (\d+) \| `(\w+)` \| [^|]* \| ([^|]*) \| ([^|]*) \|"
    rows = re.findall(row, PAGE.split("\n# Errors\n")[1], re.MULTILINE)
    return {name: (int(number), fate, retry) for number, name, fate, retry in rows}


def exchange():
    """The page's dump: the bytes of a handshake, its answer, a request and its reply."""
    return [
        bytes.fromhex("".join(line.split("  ")[1] for line in block.splitlines()))
        for block in re.findall(r"^```text\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    ]


CODES = error_codes()
NAMES = {number: name for name, (number, _, _) in CODES.items()}


def last_key_before(end):
    """The greatest key before `end`, or of all."""
    if end is None:
        return b"\xff" * KEY_MAX
    if len(end) > KEY_MAX:
        return end[:KEY_MAX]
    if not end or end[-1] == 0:
        return end[:-1]
    return (end[:-1] + bytes([end[-1] - 1])).ljust(KEY_MAX, b"\xff")


class Refused(Exception):
    """A request was answered with an error."""

    def __init__(self, error):
        self.code = NAMES.get(error["code"], str(error["code"]))
        self.fate = error["fate"]
        self.retry_after_ms = error["retry_after_ms"]
        self.route = error["route"]
        self.more_routes = error["more_routes"] or []
        super().__init__(f"{self.code}: {error['message']}")


class Closed(Exception):
    """The server has ended the connection."""


def handshake(shard=ANY_SHARD, smart=False, role=0, versions=(PROTOCOL_VERSION, PROTOCOL_VERSION), tls=False):
    flags = (1 if smart else 0) | (2 if tls else 0)
    return struct.pack("<4sHHBBHI", b"RDB\n", *versions, role, flags, shard, 0)


class Connection:
    """One connection, greeted."""

    def __init__(self, address, first=None, **options):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT_TIMEOUT)
        self.address = address
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.next = 0
        self.write(handshake(**options) if first is None else first)
        magic, self.verdict, self.version, self.shard, self.shards, _, self.node = struct.unpack(
            "<4sHHHHIQ", self.read(24)
        )
        assert magic == b"RDB\r", magic
        self.cluster = int.from_bytes(self.read(16), "little")

    def write(self, data):
        self.socket.sendall(data)

    def read(self, count):
        parts = b""
        while len(parts) < count:
            try:
                part = self.socket.recv(min(count - len(parts), 1 << 20))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed
            parts += part
        return parts

    def frame(self, kind, body):
        """A frame under the next id."""
        self.next += 1
        return self.next, struct.pack("<IQHH", len(body) + 12, self.next, kind, 0) + body

    def send(self, name, **fields):
        """Sends a request; gives its id."""
        id_, data = self.frame(REQUESTS[name], SCHEMA.encode(name, fields))
        self.write(data)
        return id_

    def receive(self):
        """The next reply: its id, the name of its table, and the fields."""
        length, id_, kind, _ = struct.unpack("<IQHH", self.read(16))
        body = self.read(length - 12)
        return id_, REPLIES[kind], SCHEMA.decode(REPLIES[kind], body)

    def ask(self, name, **fields):
        """Sends a request and waits for its reply, which must not be an error."""
        id_ = self.send(name, **fields)
        replied, kind, reply = self.receive()
        assert replied == id_, (replied, id_)
        if kind == "Error":
            raise Refused(reply)
        return kind, reply

    def close(self):
        self.socket.close()


class Client:
    """A client that follows routes, and tries again what the page says may be tried again."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.id = secrets.randbits(128)
        self.sequence = 0
        self.now, self.seen_at = 0, time.monotonic()
        self.connections = {}
        self.routes = []
        self.cluster = None
        self.followed = 0
        self.refresh()

    # Time.

    def observe(self, now):
        if now > self.now:
            self.now, self.seen_at = now, time.monotonic()

    def reckoned(self):
        """The cluster's time: the largest `now`, and the time since."""
        return self.now + (int((time.monotonic() - self.seen_at) * 1000) << 16)

    def session(self):
        """The name of a new write. One at a time is under way, so all before are answered."""
        self.sequence += 1
        return {
            "client_high": self.id >> 64,
            "client_low": self.id & (1 << 64) - 1,
            "sequence": self.sequence,
            "lowest_unanswered": self.sequence,
            "first_tried": self.reckoned(),
        }

    # Places.

    def connection(self, place):
        """The connection to `(address, shard)`; its cluster must be the first one's."""
        if place not in self.connections:
            address, shard = place
            made = Connection(address, shard=shard, smart=True)
            assert made.verdict == 0, made.verdict
            self.cluster = self.cluster or made.cluster
            assert made.cluster == self.cluster, f"{address} is of another cluster"
            self.connections[place] = made
        return self.connections[place]

    def refresh(self):
        connection = self.connection((self.addresses[0], ANY_SHARD))
        _, reply = connection.ask("Directory", token=self.now)
        self.observe(reply["now"])
        self.routes = []
        for route in reply["routes"]:
            self.learn(route, connection)

    def learn(self, route, connection):
        # A node that leads is best reached as it was reached now.
        if route["node"] == connection.node or not route["address"]:
            route["address"] = connection.address

        def overlaps(other):
            ends_before = lambda a, b: a["end"] is not None and a["end"] <= b["start"]
            return not ends_before(route, other) and not ends_before(other, route)

        epoch = lambda of: (of["version"], of["conf"])
        if any(overlaps(other) and epoch(other) > epoch(route) for other in self.routes):
            return
        kept = [other for other in self.routes if not overlaps(other)] + [route]
        # What a newer route leaves of an older one stays.
        for other in filter(overlaps, self.routes):
            if other["start"] < route["start"]:
                kept.append(dict(other, end=route["start"]))
            if route["end"] is not None and (other["end"] is None or route["end"] < other["end"]):
                kept.append(dict(other, start=route["end"]))
        self.routes = sorted(kept, key=lambda other: other["start"])

    def route(self, key):
        for route in self.routes:
            if route["start"] <= key and (route["end"] is None or key < route["end"]):
                return route
        raise KeyError(key)

    # Calls.

    def call(self, name, at, **fields):
        """Asks where the key `at` is believed to be, follows routes, tries again; gives kind and fields."""
        if name in WRITES and "session" not in fields:
            fields["session"] = self.session()
        until = time.monotonic() + WAIT_TIMEOUT
        route = self.route(at)
        while True:
            place = (route["address"], route["shard"]) if route["led"] else (self.addresses[0], ANY_SHARD)
            target = {field: route[field] for field in ("range", "version", "conf")}
            left_ms = max(1, int((until - time.monotonic()) * 1000))
            connection = self.connection(place)
            try:
                kind, reply = connection.ask(
                    name, target=target, deadline_ms=left_ms, token=self.now, **fields
                )
                self.observe(reply["now"])
                return kind, reply
            except Refused as refused:
                retry = CODES.get(refused.code, (0, "", "no"))[2]
                if retry.startswith("no") or time.monotonic() > until:
                    raise
                leader = refused.route and (refused.route["node"], refused.route["shard"])
                is_unled = leader and (not refused.route["led"] or leader == (connection.node, connection.shard))
                if refused.code == "not_leader" and is_unled:
                    # The shard that was asked learns first who leads.
                    time.sleep(max(refused.retry_after_ms, 5) / 1000)
                elif refused.route is not None:
                    self.followed += 1
                    route = refused.route
                    for told in [route] + refused.more_routes:
                        self.learn(told, connection)
                else:
                    time.sleep(refused.retry_after_ms / 1000)
                    self.refresh()
                    route = self.route(at)

    def get(self, key):
        _, reply = self.call("Get", key, key=key)
        return None if reply["value"] is None else (reply["value"], reply["version"])

    def batch(self, mutations, conditions=None, **fields):
        key = mutations[0]["key"] if mutations else b"k"
        return self.call("Batch", key, mutations=mutations, conditions=conditions, **fields)

    def put(self, key, value, **fields):
        return self.batch([put(key, value)], **fields)[1]

    def delete(self, key):
        return self.batch([delete(key)])[1]

    def compare_and_swap(self, key, expected, new, value=None, version=0, **fields):
        condition = {"key": key, "expected": expected, "value": value, "version": version}
        return self.batch([delete(key) if new is None else put(key, new)], [condition], **fields)

    def increment(self, key, delta, **fields):
        reply = self.batch([add(key, delta)], **fields)[1]
        return {"value": reply["numbers"][0], "version": reply["version"]}

    def write(self, mutations, **fields):
        return self.batch(mutations, **fields)[1]

    def scan(self, start=b"", end=None, reverse=False, keys_only=False, **limits):
        """Pages of rows, each a snapshot of one range."""
        place, continuation = last_key_before(end) if reverse else start, None
        while True:
            # A continuation says where to go on; it is sent to where the page before came from, and
            # the route of the next range comes back when that range has ended.
            fields = {"continuation": continuation}
            if continuation is None:
                fields = {"start": start, "end": end, "reverse": reverse, "keys_only": keys_only}
            _, page = self.call("Scan", place, **fields, **limits)
            yield page
            continuation = page["continuation"]
            if continuation is None:
                return
            if page["rows"]:
                last = page["rows"][-1]["key"]
                place = last_key_before(last) if reverse else last + b"\0"
