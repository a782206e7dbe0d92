"""An HTTP proxy on loopback that delays, breaks and refuses by a seeded plan what passes through it.

    python faulty_proxy.py TARGET_PORT

prints its own port. `PUT /-/plan` with a JSON document sets the plan, `GET /-/counts` tells what happened since.
A plan:

    seed        of the draws; a request's fate depends on it, its method, its path and how often it was made before
    faults      kind -> probability, of `500`, `503`, `garbage` (a 500 whose body is no XML), `drop` (the connection
                ends before the request is read), `drop_half` (in the midst of the request's body), `drop_answer`
                (the request is done, its answer lost), `truncate` (half of the answer's body, then the connection
                ends), `stall` (no answer for `stall_s`), `trickle` (the answer comes at `bytes_per_s`), `403`, `404`
    methods     that it is about; all by default
    match       substring of the paths that it is about
    in_a_row    faults at most for one method and path, one after the other; without it there is no end to them
    delay_s     added to each request
    keep        answer a GET from memory when it was made before, so that the server behind costs nothing; goes on from
                one plan to the next
"""

import asyncio
import json
import random
import sys
from collections import Counter

from s3_on_loopback import end_with_parent

_REASONS = {500: "Internal Server Error", 503: "Slow Down", 403: "Forbidden", 404: "Not Found"}
_CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 404: "NoSuchKey"}


class Proxy:
    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.kept: dict = {}
        self.reset({})

    def reset(self, plan: dict) -> None:
        self.plan = plan
        self.made: Counter = Counter()
        self.in_a_row: Counter = Counter()
        self.counts: Counter = Counter()
        self.in_flight = 0
        if not plan.get("keep"):
            self.kept = {}

    def fate(self, method: str, path: str) -> str | None:
        """The fault that a request meets, None for none."""
        plan, key = self.plan, (method, path)
        if method not in plan.get("methods", [method]) or plan.get("match", "") not in path:
            return None
        self.made[key] += 1
        draw = random.Random(f"{plan.get('seed', 0)} {method} {path} {self.made[key]}").random()
        if self.in_a_row[key] < plan.get("in_a_row", 1 << 30):
            for kind, probability in plan.get("faults", {}).items():
                draw -= probability
                if draw < 0:
                    self.in_a_row[key] += 1
                    return kind
        self.in_a_row[key] = 0
        return None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is to end."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        length = int(headers.get("content-length", 0))
        if path.startswith("/-/"):
            return await self.control(path, await reader.readexactly(length), writer)
        kind = self.fate(method, path)
        self.counts[method] += 1
        if kind is not None:
            self.counts[f"fault {kind}"] += 1
        if kind == "drop":
            return False
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind == "drop_half":
            await reader.readexactly(length // 2)
            return False
        body = await reader.readexactly(length)
        self.in_flight += 1
        self.counts["in flight"] = max(self.counts["in flight"], self.in_flight)
        try:
            return await self.answer(method, path, lines, body, kind, writer)
        finally:
            self.in_flight -= 1

    async def answer(self, method, path, lines, body, kind, writer) -> bool:
        await asyncio.sleep(self.plan.get("delay_s", 0))
        if kind in ("500", "503", "403", "404", "garbage"):
            status = 500 if kind == "garbage" else int(kind)
            said = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
            if kind == "garbage":
                said = b"<html>upstream connect error<"
            if method == "HEAD":
                said = b""
            writer.write(f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said)
            await writer.drain()
            return True
        if kind == "stall":
            await asyncio.sleep(self.plan["stall_s"])
            return False
        answered = self.kept.get(path) if method == "GET" and self.plan.get("keep") else None
        if answered is None:
            answered = await self.forward(lines, body)
            if method == "GET" and self.plan.get("keep"):
                self.kept[path] = answered
        head, _, content = answered.partition(b"\r\n\r\n")
        if kind == "drop_answer":
            return False
        if kind == "truncate" and content:
            writer.write(head + b"\r\n\r\n" + content[: len(content) // 2])
            await writer.drain()
            return False
        if kind == "trickle":
            writer.write(head + b"\r\n\r\n")
            piece = max(1, self.plan["bytes_per_s"] // 20)
            for at in range(0, len(content), piece):
                writer.write(content[at : at + piece])
                await writer.drain()
                await asyncio.sleep(0.05)
            return True
        self.counts["bytes out"] += len(content)
        writer.write(answered)
        await writer.drain()
        return True

    async def forward(self, lines: list[str], body: bytes) -> bytes:
        """The server's answer, with the headers about connections left out."""
        kept = [line for line in lines[1:] if line and line.split(":")[0].lower() not in ("connection", "expect")]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        writer.write("\r\n".join([lines[0], *kept, "Connection: close", "", ""]).encode("latin-1") + body)
        answered = await reader.read()
        writer.close()
        head, _, content = answered.partition(b"\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:"))
        return head + b"\r\n\r\n" + content

    async def control(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if path == "/-/plan":
            self.reset(json.loads(body))
        said = json.dumps(self.counts).encode()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n".encode() + said)
        await writer.drain()
        return False


async def main() -> None:
    end_with_parent()
    proxy = Proxy(int(sys.argv[1]))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
