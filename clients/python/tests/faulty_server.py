import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Seen:
    method: str
    url: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Answer:
    body: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    """Hang up in place of an answer."""
    hang: bool = False
    """Never answer."""


Answering = Answer | Callable[[Seen], Answer | Awaitable[Answer]]


class FaultyServer:
    """Stands in for a network and a worker with faults: it gives these answers in turn, and the last one from then on."""

    def __init__(self, *answers: Answering, port: int = 0) -> None:
        self.seen: list[Seen] = []
        self._answers = list(answers)
        self._port = port
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "FaultyServer":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        try:
            seen = await _read(reader)
            self.seen.append(seen)
            answer = await self._next(seen)
            if answer.hang:
                await asyncio.Event().wait()
            if not answer.hang_up:
                writer.write(_written(answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _next(self, seen: Seen) -> Answer:
        following = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(following, Answer):
            return following
        answer = following(seen)
        return await answer if inspect.isawaitable(answer) else answer


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, url, _ = head[0].split(" ", 2)
    headers: dict[str, str] = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method, url, headers, body.decode())


def _written(answer: Answer) -> bytes:
    text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
    body = text.encode()
    headers = {"content-type": "application/json", **answer.headers, "content-length": len(body), "connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def problem(status: int, name: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    body = {"type": f"urn:mooring:problem:{name}", "title": name, "status": status, "detail": f"it is {name}", **more}
    return Answer(body, status, {"content-type": "application/problem+json", **(headers or {})})
