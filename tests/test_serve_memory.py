"""A model that is replaced or unloaded is freed at once, and loads take turns."""

import asyncio
import gc
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc_aio
from tritonclient.utils import InferenceServerException

from made_server import HANGING, Half, server_bundle, serving
from splitveil.serve import Addresses, Models, Settings, open_models, serve
from splitveil.serve.changes import MOST_WAITING
from splitveil.serve.refusal import RefusedError

MIB = 2**20
MEGABYTES = 24


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python frees nothing but what nobody refers to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def ask_in_every_way(addresses: Addresses, half: Half) -> None:
    """Answers, refusals, a fault and clients that leave, over both protocols."""
    good = half.random(1, 6)

    def body(rows: Any) -> dict[str, Any]:
        tensor = {"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": rows.ravel().tolist()}
        return {"inputs": [tensor]}

    url = f"{addresses.rest}/v2/models/made/infer"
    async with httpx.AsyncClient(timeout=HANGING) as client:
        found = [(await client.post(url, json=body(rows))).status_code for rows in (good, good[:, :5], FAULTY)]
        assert found == [200, 400, 500]
        leaving = [asyncio.create_task(client.post(url, json=body(good))) for _ in range(5)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert (await client.post(url, json=body(good))).status_code == 200
    async with triton_grpc_aio.InferenceServerClient(addresses.grpc) as client:
        for rows, shape, wanted in (
            (good, [1, 6], None), (good, [1, 7], "INVALID_ARGUMENT"), (FAULTY, [1, 6], "INTERNAL")
        ):  # fmt: skip
            tensor = triton_grpc_aio.InferInput("coefficients", shape, "FP32")
            tensor.set_shape([1, 6])
            tensor.set_data_from_numpy(rows)
            tensor.set_shape(shape)
            try:
                await client.infer("made", [tensor])
                status = None
            except InferenceServerException as error:
                status = error.status()
            assert status == (wanted and f"StatusCode.{wanted}")
        await client.get_model_metadata("made")
        await client.get_inference_statistics("made")


FAULTY = np.full((1, 6), 12345.0, np.float32)


def break_down(model: Any) -> None:
    """Let the runs of a model fail for one input, as one does that takes too long."""
    run = model._batcher._run

    def faulty(rows: Any) -> Any:
        if (rows == FAULTY[0, 0]).any():
            raise RuntimeError("a run failed")
        return run(rows)

    model._batcher._run = faulty


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("work", [0, 20], ids=["in the loop", "in a thread"])
@pytest.mark.parametrize("change", ["load", "unload"])
def test_nothing_of_a_model_is_left_once_it_is_gone(tmp_path: Path, change: str, work: int) -> None:
    folder = server_bundle(tmp_path / "bundle", work=work)
    half = Half(folder)
    settings = Settings(http_port=0, grpc_port=0)
    models = open_models([folder], settings)

    async def run() -> list[object]:
        ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        serving_it = asyncio.create_task(serve(models, settings, ready.set_result))
        try:
            addresses = await ready
            model = models.get("made")
            break_down(model)
            parts = [weakref.ref(part) for part in (model, model._batcher, model._graph._session)]
            del model
            await ask_in_every_way(addresses, half)
            await asyncio.sleep(0.05)  # clients that left are noticed when their connections close
            async with httpx.AsyncClient(timeout=HANGING) as client:
                reply = await client.post(f"{addresses.rest}/v2/repository/models/made/{change}")
                assert reply.status_code == 200
            return [part() for part in parts]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await serving_it

    assert asyncio.run(run()) == [None] * 3


def test_twenty_loads_of_a_large_graph_take_the_memory_of_one(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle", components=64, megabytes=MEGABYTES)
    with (
        serving(folder, "--max-batch", 2) as server,
        httpx.Client(base_url=server.rest, timeout=HANGING) as client,
    ):
        sizes = []
        for _ in range(20):
            assert client.post("/v2/repository/models/made/load").status_code == 200
            sizes.append(server.resident())
        assert max(sizes[5:]) < max(sizes[:5]) + MEGABYTES * MIB
        client.post("/v2/repository/models/made/unload")
        assert server.resident() < min(sizes) - MEGABYTES * MIB / 2


def loads(models: Models) -> int:
    return int(models.metrics.reloads.labels("loaded")._value.get())


def test_a_thousand_calls_to_load_read_the_bundle_twice(tmp_path: Path) -> None:
    models = open_models([server_bundle(tmp_path / "bundle")], Settings())

    async def many() -> None:
        first = asyncio.create_task(models.load("made"))
        while not models._changes.turn.locked():
            await asyncio.sleep(0)
        await asyncio.gather(first, *(models.load("made") for _ in range(1000)))

    asyncio.run(many())
    assert loads(models) == 1 + 2  # the start's, the first one's, and that of all who came while it read


def test_changes_happen_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    models = open_models([server_bundle(tmp_path / "bundle")], Settings())

    async def both() -> None:
        for calls in ((models.load, models.unload), (models.unload, models.load), (models.load, models.unload)):
            await asyncio.gather(*(call("made") for call in (*calls, *calls)))
            assert bool(models.loaded) == (calls[-1] == models.load)

    asyncio.run(both())


def test_more_changes_than_can_wait_are_refused_and_who_leaves_stops_none(tmp_path: Path) -> None:
    for number in range(MOST_WAITING + 3):
        server_bundle(tmp_path / "models" / f"made{number}" / "1", name=f"made{number}", seed=number)
    models = open_models([tmp_path / "models"], Settings())
    before = loads(models)

    async def many() -> list[Any]:
        asked = [asyncio.create_task(models.load(f"made{number}")) for number in range(MOST_WAITING + 3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        while models._changes._tasks:
            await asyncio.sleep(0)
        return found

    found = asyncio.run(many())
    refused = [error.reason for error in found if isinstance(error, RefusedError)]
    assert refused == ["busy"] * 2
    assert loads(models) - before == MOST_WAITING + 1
    assert sum(isinstance(error, asyncio.CancelledError) for error in found) == 1
