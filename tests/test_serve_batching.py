"""Micro-batching: who is computed together, in what order, and that everybody gets the own answer."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http

from made_server import HANGING, Array, Half, server_bundle, serving
from splitveil.serve.batching import INLINE_SECONDS, Batcher, Run


class Made:
    """A batcher that doubles, and writes down what it was given."""

    def __init__(self, *, seconds: float = 0.0, max_batch: int = 8, max_delay: float = 0.0, mixes: bool = True) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()
        self.observed: list[Run] = []
        self.batcher = Batcher(
            self.run, mixes=mixes, max_batch=max_batch, max_delay=max_delay, seconds=lambda _: seconds,
            observe=lambda run: self.observed.append(run),
        )  # fmt: skip

    def run(self, rows: Array) -> Array:
        self.begun.set()
        assert self.go.wait(HANGING)
        self.batches.append(rows[:, 0].tolist())
        self.threads.add(threading.get_ident())
        if (rows < 0).any():
            raise ValueError("a bad batch")
        return rows * 2

    async def computing(self) -> None:
        """Until a run has begun."""
        while not self.begun.is_set():
            await asyncio.sleep(0)

    async def ask(self, value: float, rows: int = 1) -> Array:
        return await self.batcher.submit(np.full((rows, 1), value, np.float32))


def test_what_arrives_in_one_turn_is_computed_together() -> None:
    made = Made()

    async def all_at_once() -> list[Array]:
        return await asyncio.gather(*(made.ask(value) for value in (1, 2, 3)))

    found = asyncio.run(all_at_once())
    assert [answer.tolist() for answer in found] == [[[2.0]], [[4.0]], [[6.0]]]
    assert made.batches == [[1.0, 2.0, 3.0]]
    assert [(run.rows, len(run.waited)) for run in made.observed] == [(3, 3)]
    assert made.threads == {threading.get_ident()}


def test_what_arrives_turn_by_turn_is_computed_together() -> None:
    made = Made(max_batch=100)

    async def one_after_the_other() -> None:
        asked = []
        for value in range(5):  # as gRPC hands them over
            asked.append(asyncio.create_task(made.ask(value)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*asked)

    asyncio.run(one_after_the_other())
    assert made.batches == [[0.0, 1.0, 2.0, 3.0, 4.0]]


def test_nobody_waits_for_a_stream_that_does_not_end() -> None:
    made = Made(max_batch=1000)

    async def endless() -> None:
        asked = []
        while not made.begun.is_set():
            asked.append(asyncio.create_task(made.ask(len(asked))))
            await asyncio.sleep(0)
            assert len(asked) < 200
        await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(endless(), HANGING))
    assert len(made.batches[0]) > 10


def test_requests_are_never_torn_nor_overtaken_nor_beyond_the_limit() -> None:
    made = Made(max_batch=4)

    async def all_at_once() -> list[Array]:
        return await asyncio.gather(
            *(made.ask(value, rows) for value, rows in ((1, 3), (2, 2), (3, 2), (4, 4), (5, 1)))
        )

    found = asyncio.run(all_at_once())
    assert made.batches == [[1.0] * 3, [2.0] * 2 + [3.0] * 2, [4.0] * 4, [5.0]]
    assert [len(answer) for answer in found] == [3, 2, 2, 4, 1]


def test_long_runs_leave_the_loop_free_and_others_gather_meanwhile() -> None:
    made = Made(seconds=2 * INLINE_SECONDS)
    made.go.clear()

    async def meanwhile() -> None:
        first = asyncio.create_task(made.ask(1))
        await made.computing()
        others = [asyncio.create_task(made.ask(value)) for value in (2, 3)]
        await asyncio.sleep(0)
        made.go.set()  # only reached if the loop is free
        await asyncio.gather(first, *others)

    asyncio.run(asyncio.wait_for(meanwhile(), HANGING))
    assert made.batches == [[1.0], [2.0, 3.0]]
    assert threading.get_ident() not in made.threads


def test_a_delay_gathers_until_it_ends_or_the_batch_is_full() -> None:
    made = Made(max_batch=3, max_delay=HANGING)

    async def full() -> None:
        first = asyncio.create_task(made.ask(1))
        await asyncio.sleep(0.01)  # longer than one turn of the loop
        await asyncio.gather(first, made.ask(2), made.ask(3))

    asyncio.run(asyncio.wait_for(full(), HANGING / 2))  # full, so that nobody waits for the delay
    assert made.batches == [[1.0, 2.0, 3.0]]
    alone = Made(max_batch=3, max_delay=0.01)
    assert asyncio.run(asyncio.wait_for(alone.ask(7), HANGING)).tolist() == [[14.0]]


@pytest.mark.parametrize("seconds", [0.0, 2 * INLINE_SECONDS])
@pytest.mark.parametrize("max_delay", [0.0, HANGING])
def test_rows_of_different_requests_are_not_mixed_where_they_may_depend_on_each_other(
    seconds: float, max_delay: float
) -> None:
    """And nobody waits for company that would not be kept."""
    made = Made(seconds=seconds, max_delay=max_delay, mixes=False)

    async def all_at_once() -> list[Array]:
        return await asyncio.gather(*(made.ask(value, rows) for value, rows in ((1, 2), (2, 1), (3, 3))))

    found = asyncio.run(asyncio.wait_for(all_at_once(), HANGING / 2))
    assert made.batches == [[1.0] * 2, [2.0], [3.0] * 3]
    assert [answer.tolist() for answer in found] == [[[2.0]] * 2, [[4.0]], [[6.0]] * 3]


@pytest.mark.parametrize("seconds", [0.0, 2 * INLINE_SECONDS])
def test_an_error_reaches_the_batch_and_nobody_after(seconds: float) -> None:
    made = Made(seconds=seconds, max_batch=2)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(made.ask(value) for value in (1, -2, 3)), return_exceptions=True)

    found = asyncio.run(all_at_once())
    assert [isinstance(answer, ValueError) for answer in found] == [True, True, False]
    assert found[2].tolist() == [[6.0]]


def test_who_has_left_is_not_computed() -> None:
    made = Made(seconds=2 * INLINE_SECONDS)
    made.go.clear()

    async def leave() -> Array:
        first = asyncio.create_task(made.ask(1))
        await made.computing()
        left, stayed = asyncio.create_task(made.ask(2)), asyncio.create_task(made.ask(3))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        made.go.set()
        await first
        return await stayed

    assert asyncio.run(asyncio.wait_for(leave(), HANGING)).tolist() == [[6.0]]
    assert made.batches == [[1.0], [3.0]]


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("work", [0, 3])
def test_many_clients_of_different_lengths_get_their_own_answers(tmp_path: Path, work: int, mixes: bool) -> None:
    folder = server_bundle(tmp_path / "bundle", components=16, work=work, mixes=mixes)
    half = Half(folder)

    async def http(client: Any, number: int) -> None:
        for step in range(10):
            sent = half.random(1 + number % 3, 1 + (number + step) % 16, seed=100 * number + step)
            tensor = triton_http.InferInput("coefficients", list(sent.shape), "FP32")
            tensor.set_data_from_numpy(sent)
            answer = await client.infer("made", [tensor], request_id=f"{number}-{step}")
            assert answer.get_response()["id"] == f"{number}-{step}"
            np.testing.assert_allclose(answer.as_numpy("logits"), half.logits(sent), rtol=1e-4, atol=1e-5)

    async def rpc(client: Any, number: int) -> None:
        for step in range(10):
            sent = half.random(1 + number % 3, 1 + (number + step) % 16, seed=200 * number + step)
            tensor = triton_grpc.InferInput("coefficients", list(sent.shape), "FP32")
            tensor.set_data_from_numpy(sent)
            answer = await client.infer("made", [tensor])
            np.testing.assert_allclose(answer.as_numpy("logits"), half.logits(sent), rtol=1e-4, atol=1e-5)

    async def everybody(server: Any) -> int:
        async with (
            triton_http.InferenceServerClient(server.host, conn_limit=16) as first,
            triton_grpc.InferenceServerClient(server.grpc) as second,
        ):
            await asyncio.gather(*(http(first, n) for n in range(16)), *(rpc(second, n) for n in range(16)))
            (seen,) = (await second.get_inference_statistics("made")).model_stats
            assert seen.inference_stats.success.count == 320
            return int(seen.execution_count)

    with serving(folder, "--max-delay-ms", 2) as server:
        runs = asyncio.run(asyncio.wait_for(everybody(server), HANGING))
    assert (runs < 320) == half.mixes  # some were computed together, or none
