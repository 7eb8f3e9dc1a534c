"""Holds the protocol page true: `checks.py HOST:PORT` against a fresh node with two shards, whose keys
are split at `m`. Each function whose name begins with `check_` is one check; an exception fails it.
"""

import json
import struct
import sys
import time
import traceback

from rangedb_client import (
    ABSENT,
    ANY_SHARD,
    CODES,
    EXISTS,
    NOT_APPLIED,
    PROTOCOL_VERSION,
    PUT,
    SCHEMA,
    UNKNOWN,
    VALUE,
    VERSION,
    Client,
    Closed,
    Connection,
    Refused,
    add,
    delete,
    exchange,
    handshake,
    put,
)

ADDRESS = sys.argv[1]
KEY_MAX, VALUE_MAX, FRAME_MAX = 4096, 1 << 20, 8 << 20


def refused(code, call, *arguments, fate=NOT_APPLIED, **fields):
    """The call must be refused with this code."""
    try:
        result = call(*arguments, **fields)
    except Refused as refusal:
        assert (refusal.code, refusal.fate) == (code, fate), refusal
        return refusal
    raise AssertionError(f"not refused as {code}: {result}")


def closed(connection):
    """The server must end the connection."""
    try:
        connection.read(1)
    except Closed:
        return
    raise AssertionError("there is more")


def check_handshakes(client):
    for verdict, options in [
        (0, {}),
        (0, {"versions": (1, 9)}),
        (0, {"smart": True, "shard": 1}),
        (1, {"versions": (3, 9)}),
        (1, {"versions": (1, 1)}),
        (2, {"shard": 2}),
        (3, {"tls": True}),
        (4, {"role": 1, "versions": (1, 65535)}),
        (4, {"role": 7}),
    ]:
        connection = Connection(ADDRESS, **options)
        assert connection.verdict == verdict, (options, connection.verdict)
        assert connection.shards == 2
        # Nodes speak versions of their own with each other.
        assert connection.version == PROTOCOL_VERSION or options.get("role") == 1
        if options.get("shard") == 1:
            assert connection.shard == 1
        if verdict != 0:
            closed(connection)
    try:
        Connection(ADDRESS, first=b"GET / HTTP/1.1\r\n")
    except Closed:
        pass
    else:
        raise AssertionError("a stranger was answered")
    # The first request may come right behind the handshake.
    get = SCHEMA.encode("Get", {"key": b"nothing"})
    first = handshake() + struct.pack("<IQHH", len(get) + 12, 77, 1, 0) + get
    connection = Connection(ADDRESS, first=first)
    id_, kind, reply = connection.receive()
    assert (id_, kind, reply["value"], reply["version"]) == (77, "Value", None, 0)
    _, state = connection.ask("Status")
    assert state["cluster"] == f"{connection.cluster:032x}", state["cluster"]
    assert state["node"] == connection.node


def check_the_dump_on_the_page(client):
    first, answer, request, reply = exchange()
    assert first == handshake(shard=0, smart=True)
    verdict, version, shard, shards, _, node = struct.unpack("<HHHHIQ", answer[4:24])
    assert (verdict, version, shard, shards, node) == (0, PROTOCOL_VERSION, 0, 2, 1)
    assert f"{int.from_bytes(answer[24:], 'little'):032x}" == bytes(range(16)).hex()
    length, id_, kind, _ = struct.unpack("<IQHH", request[:16])
    assert (length, id_, kind) == (len(request) - 4, 7, 6)
    batch = SCHEMA.decode("Batch", request[16:])
    assert batch["conditions"] is None and batch["deadline_ms"] == 5000
    assert batch["mutations"] == [dict(put(b"k", b"v"), delta=0, expires_at=0)]
    assert batch["target"] == {"range": 2, "version": 1, "conf": 1}
    session = batch["session"]
    assert (session["sequence"], session["lowest_unanswered"]) == (1, 1)
    assert session["first_tried"] == batch["token"]
    length, id_, kind, _ = struct.unpack("<IQHH", reply[:16])
    assert (length, id_, kind) == (len(reply) - 4, 7, 0x8002)
    written = SCHEMA.decode("Written", reply[16:])
    assert written["version"] == written["now"] > batch["token"] and not written["existed"]


def check_values(client):
    assert client.get(b"value") is None
    first = client.put(b"value", b"")
    assert client.get(b"value") == (b"", first["version"])
    assert not client.put(b"value", b"two")["existed"], "only deletes and swaps say so"
    gone = client.delete(b"value")
    assert gone["existed"] and gone["version"] > first["version"]
    assert not client.delete(b"value")["existed"]
    assert client.get(b"value") is None
    longest = b"v" * KEY_MAX
    client.put(longest, b"x" * VALUE_MAX)
    assert len(client.get(longest)[0]) == VALUE_MAX
    client.delete(longest)
    refused("invalid", client.put, longest + b"v", b"")
    refused("invalid", client.put, b"", b"")
    refused("invalid", client.put, b"k", b"x" * (VALUE_MAX + 1))


def check_multi_get(client):
    written = {key: client.put(key, b"of " + key)["version"] for key in (b"many a", b"zz many")}
    # A plain connection asks for keys of both shards.
    plain = Connection(ADDRESS)

    def multi_get(*keys):
        lengths = [len(key) for key in keys]
        return plain.ask("MultiGet", keys=b"".join(keys), lengths=lengths)

    keys = [b"zz many", b"none", b"", b"many a", b"k" * (KEY_MAX + 1), b"zz many"]
    kind, reply = multi_get(*keys)
    assert kind == "Values" and len(reply["results"]) == len(keys)
    rest = reply["values"]
    for key, result in zip(keys, reply["results"]):
        if key in written:
            assert (result["state"], result["version"]) == (1, written[key]), result
            value, rest = rest[: result["length"]], rest[result["length"] :]
            assert value == b"of " + key
        elif key == b"none":
            assert result["state"] == 0
        else:
            assert result["state"] == 2
            assert reply["errors"][result["error"]]["code"] == CODES["invalid"][0]
    assert rest == b""
    assert reply["now"] >= max(written.values())
    # What does not fit into a reply is asked for again.
    client.put(b"many a", b"x" * VALUE_MAX)
    _, reply = multi_get(*[b"many a"] * 6)
    assert [result["state"] for result in reply["results"]] == [1, 1, 1, 1, 3, 3]
    refused("invalid", multi_get)
    refused("invalid", multi_get, *[b"k"] * 4097)
    refused("invalid", plain.ask, "MultiGet", keys=b"kk", lengths=[1])
    assert len(multi_get(*[b"k"] * 4096)[1]["results"]) == 4096
    client.delete(b"many a")
    client.delete(b"zz many")


def check_versions_are_times(client):
    version = client.put(b"time", b"")["version"]
    assert abs((version >> 16) / 1000 - time.time()) < 60
    assert client.now >= version, "a reply's now is not below what it tells"


def check_compare_and_swap(client):
    swap = client.compare_and_swap
    kind, reply = swap(b"swap", ABSENT, b"1")
    assert (kind, reply["existed"]) == ("Written", False)
    first = reply["version"]
    assert swap(b"swap", ABSENT, b"2") == (
        "ConditionFailed",
        {"current": first, "condition": 0, "now": client.now},
    )
    kind, reply = swap(b"swap", VALUE, b"2", value=b"1")
    assert (kind, reply["existed"]) == ("Written", True)
    second = reply["version"]
    assert swap(b"swap", VERSION, b"3", version=first)[0] == "ConditionFailed"
    assert swap(b"swap", VERSION, b"3", version=0)[0] == "ConditionFailed"
    assert swap(b"swap", VERSION, None, version=second)[0] == "Written"
    assert client.get(b"swap") is None
    kind, reply = swap(b"swap", VALUE, b"2", value=b"1")
    assert (kind, reply["current"]) == ("ConditionFailed", 0)
    refused("invalid", swap, b"swap", VALUE, b"2")
    refused("invalid", swap, b"swap", 9, b"2")


def check_increments(client):
    assert client.increment(b"number", 5)["value"] == 5
    assert client.increment(b"number", -7)["value"] == -2
    assert client.get(b"number")[0] == b"-2"
    for text, number in [(b"007", 7), (b"-0", 0), (b"9223372036854775807", 2**63 - 1)]:
        client.put(b"number", text)
        assert client.increment(b"number", 0)["value"] == number
    refused("number_overflow", client.increment, b"number", 1)
    for text in [b"", b"-", b"+1", b" 1", b"1.0", b"1e3", b"9223372036854775808"]:
        client.put(b"number", text)
        refused("not_a_number", client.increment, b"number", 1)


def check_writes(client):
    puts = [put(b"w%d" % number, b"1") for number in range(3)]
    written = client.write(puts + [delete(b"w0"), put(b"w1", b"last")])
    assert not written["existed"]
    assert client.get(b"w0") is None
    assert client.get(b"w1") == (b"last", written["version"])
    assert client.get(b"w2") == (b"1", written["version"])
    refused("several_ranges", client.write, [put(b"w", b""), put(b"a", b"")])
    most = [put(b"w%d" % number, b"") for number in range(4096)]
    client.write(most)
    refused("invalid", client.write, most + [put(b"wx", b"")])
    refused("invalid", client.write, [])
    # Keys and values count, nothing else.
    large = [put(b"w%03d" % number, b"x" * (VALUE_MAX - 4)) for number in range(4)]
    client.write(large)
    large[0]["value"] += b"x"
    refused("invalid", client.write, large)
    client.write([delete(mutation["key"]) for mutation in large])


def check_batches(client):
    first = client.put(b"q-a", b"1")["version"]
    hold = [
        {"key": b"q-a", "expected": VERSION, "version": first},
        {"key": b"q-a", "expected": EXISTS},
        {"key": b"q-b", "expected": ABSENT},
    ]
    changes = [add(b"q-a", 4), add(b"q-b", -4), put(b"q-c", b"c"), add(b"q-a", 1)]
    kind, reply = client.batch(changes, hold)
    assert (kind, reply["numbers"]) == ("Written", [5, -4, 6])
    assert [client.get(key)[0] for key in (b"q-a", b"q-b", b"q-c")] == [b"6", b"-4", b"c"]
    # The first condition that fails is named, and nothing is written.
    for conditions, failed, current in [
        (hold, 0, reply["version"]),
        (hold[1:], 1, reply["version"]),
        ([{"key": b"q-none", "expected": EXISTS}], 0, 0),
        ([hold[1], {"key": b"q-c", "expected": VALUE, "value": b"x"}], 1, reply["version"]),
    ]:
        kind, answer = client.batch([put(b"q-a", b"9"), put(b"q-d", b"9")], conditions)
        assert (kind, answer["condition"], answer["current"]) == ("ConditionFailed", failed, current)
    assert (client.get(b"q-a")[0], client.get(b"q-d")) == (b"6", None)
    # An addition that is refused takes all with it.
    refused("not_a_number", client.write, [put(b"q-d", b"1"), add(b"q-c", 1)])
    assert client.get(b"q-d") is None
    # Conditions count as operations, and their keys belong to the range.
    refused("several_ranges", client.batch, [put(b"q-a", b"")], [{"key": b"a", "expected": ABSENT}])
    refused("invalid", client.batch, [put(b"q-a", b"")], [hold[1]] * 4096)
    refused("invalid", client.batch, [put(b"q-a", b"")], [{"key": b"", "expected": ABSENT}])
    refused("invalid", client.write, [add(b"q-b", 1)] * 65)
    assert client.write([add(b"q-b", 1)] * 64)["numbers"] == [number - 3 for number in range(64)]
    refused("invalid", client.batch, [{"key": b"q-a", "change": PUT}])
    refused("invalid", client.batch, [{"key": b"q-a", "change": 9}])
    refused("invalid", client.batch, [dict(put(b"q-a", b""), expires_at=1)])


def check_sessions(client):
    session = client.session()
    first = client.increment(b"once", 1, session=session)
    again = client.increment(b"once", 1, session=session)
    assert (first["value"], first["version"]) == (again["value"], again["version"])
    # A refusal that was decided by the data is an outcome, and is remembered.
    client.put(b"word", b"word")
    session = client.session()
    refused("not_a_number", client.increment, b"word", 1, session=session)
    client.put(b"word", b"1")
    session["lowest_unanswered"] = session["sequence"]
    refused("session_expired", client.increment, b"word", 1, session=session, fate=UNKNOWN)
    sequence = client.sequence = client.sequence + 2
    swap = dict(client.session(), sequence=sequence - 1, lowest_unanswered=sequence - 1)
    asked = {"value": b"0", "session": swap}
    kind, failed = client.compare_and_swap(b"word", VALUE, b"2", **asked)
    assert kind == "ConditionFailed"
    late = dict(client.session(), lowest_unanswered=sequence - 1)
    client.put(b"word", b"0", session=late)
    assert client.compare_and_swap(b"word", VALUE, b"2", **asked)[1]["current"] == failed["current"]
    # A rule of the request itself is none.
    session = client.session()
    refused("invalid", client.put, b"k", b"x" * (VALUE_MAX + 1), session=session)
    client.put(b"k", b"fits", session=session)
    # Pairs are known by the range of the first key.
    session = client.session()
    assert client.increment(b"a-scope", 1, session=session)["value"] == 1
    assert client.increment(b"z-scope", 1, session=session)["value"] == 1
    assert client.increment(b"a-scope", 1, session=session)["value"] == 1
    # What is below a mark, above its own mark, or old.
    old = dict(client.session(), sequence=1, lowest_unanswered=1)
    refused("session_expired", client.put, b"k", b"", session=old, fate=UNKNOWN)
    session = client.session()
    bad = dict(session, lowest_unanswered=session["sequence"] + 1)
    refused("invalid", client.put, b"k", b"", session=bad)
    session = client.session()
    session["first_tried"] -= 11 * 60 * 1000 << 16
    refused("session_expired", client.put, b"k", b"", session=session, fate=UNKNOWN)


def check_scans(client):
    keys = [b"%c-row%d" % (letter, number) for letter in b"lmn" for number in range(5)]
    for key in keys:
        client.put(key, key.upper())
    pages = list(client.scan(b"l-row1", b"n-row2", rows_max=3))
    rows = [row for page in pages for row in page["rows"]]
    assert [row["key"] for row in rows] == [key for key in keys if b"l-row1" <= key < b"n-row2"]
    assert all(row["value"] == row["key"].upper() for row in rows)
    assert all(len(page["rows"]) <= 3 for page in pages)
    # One snapshot for each range: the pages end where the range does.
    snapshots = [(page["at"], page["rows"][0]["key"] < b"m") for page in pages if page["rows"]]
    assert len({at for at, _ in snapshots}) == len({place for _, place in snapshots}) == 2
    # The same backwards, with values and without.
    for keys_only in [False, True]:
        pages = list(client.scan(b"l-row1", b"n-row2", reverse=True, keys_only=keys_only, rows_max=3))
        found = [(row["key"], row["value"]) for page in pages for row in page["rows"]]
        wanted = [(row["key"], b"" if keys_only else row["value"]) for row in rows]
        assert found == wanted[::-1], found
        assert all(len(page["rows"]) <= 3 for page in pages)
    pages = client.scan(b"l-row", None, reverse=True, rows_max=1)
    assert [row["key"] for page in pages for row in page["rows"] if row["key"] in keys] == keys[::-1]
    # Later writes are not seen, nor is another end.
    pages = client.scan(b"n", b"n.", rows_max=2)
    first = next(pages)
    client.put(b"n-row9", b"late")
    seen = [row["key"] for page in [first, *pages] for row in page["rows"]]
    assert seen == [key for key in keys if key.startswith(b"n")]
    _, page = client.call("Scan", b"n", start=b"n", rows_max=1)
    goes_on = {"continuation": page["continuation"]}
    _, page = client.call("Scan", b"n", start=b"n-row4", end=b"n-row1", reverse=True, **goes_on)
    assert [row["key"] for row in page["rows"]][:5] == [*keys[11:], b"n-row9"], page["rows"]
    # A row always fits.
    assert [len(page["rows"]) for page in client.scan(b"l-row0", b"l-row3", bytes_max=1)] == [1, 1, 1]
    # Nothing lies between.
    assert list(client.scan(b"b", b"a"))[0]["rows"] == []
    longest = b"y" * KEY_MAX
    client.put(longest, b"")
    assert [len(page["rows"]) for page in client.scan(longest, longest + b"\0")] == [1]
    assert [len(page["rows"]) for page in client.scan(longest + b"\0", b"z")] == [0]
    refused("invalid", client.call, "Scan", b"y", start=longest + b"yy")
    good = goes_on["continuation"]
    flipped = good[:10] + bytes([good[10] ^ 1]) + good[11:]
    for bad in [b"", b"\x02" * 20, good[:5], good[:-1], good + b"\0", flipped]:
        refused("invalid", client.call, "Scan", b"n", continuation=bad)


def check_routes(client):
    routes = Connection(ADDRESS).ask("Directory")[1]["routes"]
    assert [route["start"] for route in routes] == [b"", b"m"], routes
    assert {route["shard"] for route in routes} == {0, 1}
    assert all(route["led"] and route["address"] == ADDRESS for route in routes), routes
    # A smart connection is told where to go, and a plain one is served.
    far = routes[1]
    smart = Connection(ADDRESS, shard=routes[0]["shard"], smart=True)
    session = client.session()
    for name, fields in [
        ("Get", {"key": b"z"}),
        ("Batch", {"mutations": [put(b"z", b"")], "session": session}),
        ("Scan", {"start": b"z"}),
    ]:
        refusal = refused("moved", smart.ask, name, **fields)
        assert refusal.route == far, refusal.route
    target = {"range": far["range"], "version": far["version"] + 1, "conf": far["conf"]}
    there = Connection(ADDRESS, shard=far["shard"], smart=True)
    assert refused("moved", there.ask, "Get", key=b"z", target=target).route == far
    plain = Connection(ADDRESS, shard=routes[0]["shard"])
    plain.ask("Batch", mutations=[put(b"z", b"far")], session=session)
    assert plain.ask("Get", key=b"z")[1]["value"] == b"far"
    # The client that believes what was never true learns better.
    client.routes = [dict(routes[0], end=None)]
    followed = client.followed
    assert client.get(b"z")[0] == b"far"
    assert client.followed == followed + 1
    # Of a route that a newer one overlaps the rest stays, and an older one changes nothing.
    client.routes = [dict(routes[0], start=b"", end=None)]
    part = dict(routes[0], start=b"c", end=b"f", version=routes[0]["version"] + 1)
    for told in [part, dict(routes[0], start=b"a", end=b"z")]:
        client.learn(dict(told), there)
    bounds = [(route["start"], route["end"]) for route in client.routes]
    assert bounds == [(b"", b"c"), (b"c", b"f"), (b"f", None)], bounds
    # A scan that goes on in the next range is told its route.
    client.routes = routes
    assert sum(len(page["rows"]) for page in client.scan(b"l-row4", b"m-row1")) == 2


def check_admin(client):
    connection = client.connection((ADDRESS, ANY_SHARD))
    _, done = connection.ask("Admin", command='{"command":"nodes"}')
    nodes = json.loads(done["json"])["nodes"]
    assert [node["address"] for node in nodes] == [ADDRESS]
    refused("invalid", connection.ask, "Admin", command='{"command":"dance"}')
    refused("invalid", connection.ask, "Admin", command=" " * 16385)


def check_garbage(client):
    connection = Connection(ADDRESS)
    id_, frame = connection.frame(999, b"whatever")
    connection.write(frame)
    replied, kind, error = connection.receive()
    assert (replied, kind, error["code"]) == (id_, "Error", CODES["unknown_kind"][0])
    connection.ask("Get", key=b"k")
    # A table without a required field, and bytes that are no table.
    for body in [SCHEMA.encode("Batch", {"token": 1}), b"no table", b""]:
        connection = Connection(ADDRESS)
        good = connection.send("Batch", mutations=[put(b"k", b"v")], session=client.session())
        bad, frame = connection.frame(6, body)
        connection.write(frame)
        connection.send("Get", key=b"k")
        replies = {}
        for _ in range(2):
            replied, kind, reply = connection.receive()
            replies[replied] = (kind, reply.get("code"))
        code = CODES["malformed_frame"][0]
        assert replies == {good: ("Written", None), bad: ("Error", code)}, replies
        closed(connection)
    connection = Connection(ADDRESS)
    connection.write(struct.pack("<IQHH", FRAME_MAX + 1, 5, 1, 0))
    replied, kind, error = connection.receive()
    assert (replied, kind, error["code"]) == (5, "Error", CODES["frame_too_large"][0])
    closed(connection)
    connection = Connection(ADDRESS)
    connection.write(struct.pack("<I", 11))
    closed(connection)


def check_many_in_flight(client):
    connection = Connection(ADDRESS)
    count = 3000
    frames = []
    lowest = client.sequence + 1
    for number in range(count):
        session = dict(client.session(), lowest_unanswered=lowest)
        fields = {"mutations": [put(b"many%d" % number, b"")], "session": session}
        frames.append(connection.frame(6, SCHEMA.encode("Batch", fields))[1])
    connection.write(b"".join(frames))
    allowed = {CODES[name][0] for name in ("too_many_in_flight", "overloaded")}
    seen = set()
    for _ in range(count):
        replied, kind, reply = connection.receive()
        seen.add(replied)
        if kind == "Error":
            assert reply["code"] in allowed and reply["fate"] == NOT_APPLIED, reply
            assert reply["retry_after_ms"] > 0
        else:
            assert kind == "Written", kind
    assert len(seen) == count
    connection.ask("Get", key=b"k")


def main():
    checks = [(name, check) for name, check in globals().items() if name.startswith("check_")]
    failed = 0
    for name, check in checks:
        try:
            check(Client([ADDRESS]))
        except Exception:
            failed += 1
            print(f"{name} failed:")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"{name}: good")
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


sys.exit(main())
