import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import pytest
from faulty_server import Answer, FaultyServer, problem

from mooring_client import Changed, CursorExpired, Listed, Mooring, MooringProblem, MooringUnreachable

pytestmark = pytest.mark.anyio

Item = TypeVar("Item")


@asynccontextmanager
async def started(*answers: Answer) -> AsyncGenerator[tuple[FaultyServer, Mooring], None]:
    async with FaultyServer(*answers) as server, Mooring(server.url, "token") as mooring:
        yield server, mooring


def page(cursor: str, *positions: int) -> Answer:
    return Answer({"changes": [{"position": it, "installation_id": f"i{it}"} for it in positions], "cursor": cursor})


def listed(next_cursor: str | None, changes_cursor: str, *ids: str) -> Answer:
    installations = [{"installation_id": id} for id in ids]
    return Answer({"installations": installations, "next_cursor": next_cursor, "changes_cursor": changes_cursor})


async def take(items: AsyncGenerator[Item, None], count: int) -> list[Item]:
    taken = []
    async with aclosing(items):
        async for item in items:
            taken.append(item)
            if len(taken) >= count:
                break
    return taken


async def test_each_change_comes_with_the_cursor_after_it_and_the_next_page_follows() -> None:
    async with started(page("f1-12", 7, 9), page("f1-13", 13)) as (server, mooring):
        followed = await take(mooring.follow(after="f1-5", source="blnk", types=["a", "b"]), 3)
        assert [(it.change["position"], it.cursor) for it in followed] == [(7, "f1-7"), (9, "f1-9"), (13, "f1-13")]
        assert [it.url for it in server.seen] == [
            "/v1/changes?after=f1-5&source=blnk&type=a%2Cb&wait=25",
            "/v1/changes?after=f1-12&source=blnk&type=a%2Cb&wait=25",
        ]


async def test_failures_are_waited_out_and_told() -> None:
    told: list[tuple[str, float]] = []

    def on_failure(error: MooringProblem | MooringUnreachable, seconds: float) -> None:
        told.append((type(error).__name__, seconds))

    async with started(
        page("f1-1", 1),
        Answer(hang_up=True),
        problem(503, "database-unavailable", {"retry-after": "1"}),
        problem(500, "internal-error"),
        page("f1-2", 2),
    ) as (server, mooring):
        followed = await take(mooring.follow(after="f1-0", on_failure=on_failure), 2)
        assert [it.cursor for it in followed] == ["f1-1", "f1-2"]
        assert [name for name, _ in told] == ["MooringUnreachable", "MooringProblem", "MooringProblem"]
        assert told[1][1] >= 1, "Retry-After is obeyed"
        assert all("after=f1-1" in it.url for it in server.seen[1:]), "it asks from where it was"


@pytest.mark.parametrize(
    ("status", "name"), [(401, "unauthorized"), (403, "insufficient-scope"), (400, "invalid-parameter")]
)
async def test_what_does_not_pass_ends_it(status: int, name: str) -> None:
    async with started(problem(status, name)) as (_, mooring):
        with pytest.raises(MooringProblem, match=name):
            await take(mooring.follow(), 1)


async def test_a_cursor_that_has_expired_is_an_error_of_its_own() -> None:
    async with started(problem(410, "cursor-expired")) as (_, mooring):
        with pytest.raises(CursorExpired) as raised:
            await take(mooring.follow(after="f0-1"), 1)
    assert raised.value.status == 410


@pytest.mark.parametrize("answer", [Answer(hang=True), problem(503, "database-unavailable", {"retry-after": "60"})])
async def test_it_ends_when_its_task_is_cancelled(answer: Answer) -> None:
    async with started(answer) as (server, mooring):
        task = asyncio.create_task(take(mooring.follow(), 1))
        while not server.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1


async def test_a_worker_that_does_not_wait_is_not_asked_without_a_pause() -> None:
    async with started(page("f1-1")) as (server, mooring):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(take(mooring.follow(), 1), 1)
        assert len(server.seen) <= 5


async def test_a_list_is_followed_from_the_cursor_of_its_first_page() -> None:
    async with started(listed("n", "f1-4", "a"), listed(None, "f1-9", "b"), page("f1-5", 5)) as (server, mooring):
        first, second = await take(mooring.list_and_follow(source="blnk"), 2)
        assert isinstance(first, Listed) and isinstance(second, Changed)
        assert [it["installation_id"] for it in first.installations] == ["a", "b"]
        assert (first.cursor, second.cursor) == ("f1-4", "f1-5")
        assert "after=f1-4" in server.seen[2].url


async def test_after_an_expired_cursor_it_lists_again() -> None:
    async with started(
        problem(410, "cursor-expired"), problem(503, "database-unavailable"), listed(None, "f2-4", "a"), page("f2-5", 5)
    ) as (server, mooring):
        steps = await take(mooring.list_and_follow(after="f1-1"), 2)
        assert [(type(it), it.cursor) for it in steps] == [(Listed, "f2-4"), (Changed, "f2-5")]
        asked = [it.url.split("?")[0] for it in server.seen]
        assert asked == ["/v1/changes", "/v1/installations", "/v1/installations", "/v1/changes"]
