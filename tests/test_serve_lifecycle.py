"""Loading, reloading, unloading, versions, starting and stopping; no answer is wrong, and none that was due is lost."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from made_server import HANGING, Half, Server, server_bundle, serving
from splitveil.errors import BundleError, ServeError
from splitveil.serve import Settings, open_models


def until(happened: Callable[[], Any], process: Any = None) -> Any:
    """What a condition comes to, or fails when it does not."""
    end = time.monotonic() + HANGING
    while time.monotonic() < end:
        if found := happened():
            return found
        assert process is None or process.poll() is None
        time.sleep(0.01)
    pytest.fail("it did not happen")


def put(source: Path, target: Path) -> None:
    """Replace a served bundle in the order in which `splitveil export` writes: the manifest last."""
    for name in ("server.onnx", "manifest.json"):
        temporary = target / f".{name}"
        shutil.copyfile(source / name, temporary)
        temporary.replace(target / name)


def body(half: Half) -> dict[str, Any]:
    sent = half.random(1, 6)
    return {"inputs": [{"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": sent.ravel().tolist()}]}


def answer(server: Server, half: Half, path: str = "made") -> Any:
    reply = httpx.post(f"{server.rest}/v2/models/{path}/infer", verify=False, json=body(half))
    return np.array(reply.json()["outputs"][0]["data"], np.float32)


def test_models_and_versions_side_by_side(tmp_path: Path) -> None:
    halves = {}
    for version, seed in (("1", 1), ("2", 2), ("10", 3)):
        halves[version] = Half(server_bundle(tmp_path / "models" / "made" / version, seed=seed))
    single = Half(server_bundle(tmp_path / "single", name="single", seed=4))
    with serving(tmp_path / "models", tmp_path / "single") as server:
        sent = halves["1"].random(1, 6)
        for version, half in halves.items():
            np.testing.assert_allclose(
                answer(server, half, f"made/versions/{version}"), half.logits(sent)[0], rtol=1e-5, atol=1e-5
            )
        np.testing.assert_allclose(answer(server, single), halves["10"].logits(sent)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer(server, single, "single"), single.logits(sent)[0], rtol=1e-5, atol=1e-5)
        with triton_http.InferenceServerClient(server.host) as client:
            assert client.get_model_metadata("made")["versions"] == ["1", "2", "10"]
            newest = Half(server_bundle(tmp_path / "models" / "made" / "11", seed=5))
            shutil.rmtree(tmp_path / "models" / "made" / "2")
            client.load_model("made")
            assert client.get_model_metadata("made")["versions"] == ["1", "10", "11"]
        np.testing.assert_allclose(answer(server, newest), newest.logits(sent)[0], rtol=1e-5, atol=1e-5)


def test_unload_and_load_through_either_protocol(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    half = Half(folder)
    with (
        serving(folder) as server,
        triton_http.InferenceServerClient(server.host) as http,
        triton_grpc.InferenceServerClient(server.grpc) as rpc,
    ):
        for client, other in ((http, rpc), (rpc, http)):
            client.unload_model("made")
            assert not other.is_server_ready()
            assert httpx.post(f"{server.rest}/v2/models/made/infer", verify=False, json=body(half)).status_code == 404
            (item,) = http.get_model_repository_index()
            assert (item["state"], item["reason"]) == ("UNAVAILABLE", "unloaded")
            client.load_model("made")
            assert other.is_server_ready()
            np.testing.assert_allclose(answer(server, half), half.logits(half.random(1, 6))[0], rtol=1e-5, atol=1e-5)
            for call in (client.load_model, client.unload_model):
                with pytest.raises(InferenceServerException, match="no model 'other'"):
                    call("other")
            with pytest.raises(InferenceServerException, match="without parameters"):
                client.load_model("made", config="{}")


def test_clients_without_control(tmp_path: Path) -> None:
    with serving(server_bundle(tmp_path / "bundle"), "--no-control") as server:
        for made in (triton_http.InferenceServerClient(server.host), triton_grpc.InferenceServerClient(server.grpc)):
            with made as client:
                for call in (client.load_model, client.unload_model):
                    with pytest.raises(InferenceServerException, match="not loaded or unloaded by clients"):
                        call("made")
                assert client.is_model_ready("made")


def break_graph(folder: Path) -> None:
    content = bytearray((folder / "server.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "server.onnx").write_bytes(content)


def rename(folder: Path) -> None:
    put(server_bundle(folder.parent / "renamed", name="renamed"), folder)


@pytest.mark.parametrize(
    "spoil", [break_graph, rename, lambda folder: (folder / "manifest.json").write_text("{}"),
              lambda folder: (folder / "manifest.json").unlink()],
    ids=["changed byte", "another name", "no manifest", "missing manifest"],
)  # fmt: skip
@pytest.mark.parametrize("watched", [False, True])
def test_a_bad_bundle_is_refused_and_the_old_one_serves_on(
    tmp_path: Path, spoil: Callable[[Path], Any], watched: bool
) -> None:
    folder = server_bundle(tmp_path / "bundle")
    half = Half(folder)
    expected = half.logits(half.random(1, 6))[0]
    with serving(folder, "--reload", 0.05 if watched else 0) as server:
        spoil(folder)
        if not watched:
            reply = httpx.post(f"{server.rest}/v2/repository/models/made/load", verify=False, json={})
            assert reply.status_code == 400
            assert str(tmp_path) not in reply.text
        (event,) = until(lambda: server.events("bundle refused"), server.process)  # the log is read by a thread
        assert event["still_served"] is True
        assert str(folder) in event["reason"]
        np.testing.assert_allclose(answer(server, half), expected, rtol=1e-5, atol=1e-5)
        index = httpx.post(f"{server.rest}/v2/repository/index", verify=False).json()
        assert index[0]["state"] == "READY"
        assert "refused" in index[0]["reason"]
        put(server_bundle(tmp_path / "good", seed=7), folder)
        if watched:
            until(lambda: len(server.events("loaded")) == 2, server.process)
        else:
            assert httpx.post(f"{server.rest}/v2/repository/models/made/load", verify=False).status_code == 200
        better = Half(tmp_path / "good")
        found = answer(server, better)
        np.testing.assert_allclose(found, better.logits(better.random(1, 6))[0], rtol=1e-5, atol=1e-5)


def test_reload_under_load_gives_no_wrong_answer(tmp_path: Path) -> None:
    """Every answer is that of the old or of the new bundle, and once the new one has answered, the old never does."""
    folder = server_bundle(tmp_path / "bundle", seed=0)
    bundles = [Half(server_bundle(tmp_path / f"next-{seed}", seed=seed)) for seed in range(4)]
    sent = bundles[0].random(1, 6)
    known = [half.logits(sent)[0] for half in bundles]
    stop = asyncio.Event()

    def which(logits: Any) -> int:
        (found,) = [place for place, one in enumerate(known) if np.allclose(logits, one, rtol=1e-4, atol=1e-4)]
        return found

    async def http(server: Server) -> list[int]:
        seen = []
        async with httpx.AsyncClient(verify=False, timeout=HANGING) as client:
            while not stop.is_set():
                reply = await client.post(f"{server.rest}/v2/models/made/infer", json=body(bundles[0]))
                seen.append(which(reply.json()["outputs"][0]["data"]))
        return seen

    async def rpc(server: Server) -> list[int]:
        seen = []
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            tensor = triton_grpc_aio.InferInput("coefficients", [1, 6], "FP32")
            tensor.set_data_from_numpy(sent)
            while not stop.is_set():
                seen.append(which((await client.infer("made", [tensor])).as_numpy("logits")[0]))
        return seen

    async def everybody(server: Server) -> list[list[int]]:
        clients = [asyncio.create_task(each(server)) for each in (http, rpc) for _ in range(4)]
        async with httpx.AsyncClient(verify=False, timeout=HANGING) as client:
            for seed in range(1, 4):
                put(tmp_path / f"next-{seed}", folder)
                assert (await client.post(f"{server.rest}/v2/repository/models/made/load")).status_code == 200
        stop.set()
        return await asyncio.gather(*clients)

    with serving(folder) as server:
        orders = asyncio.run(asyncio.wait_for(everybody(server), HANGING))
    for seen in orders:
        assert seen == sorted(seen)
        assert seen
    assert len({place for seen in orders for place in seen}) > 1


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """Whoever has sent a request over an open connection gets the right answer; new connections are refused."""
    folder = server_bundle(tmp_path / "bundle", work=20)
    half = Half(folder)
    expected = half.logits(half.random(1, 6))[0]
    enough = asyncio.Event()
    counts: dict[str, int] = {"http": 0, "grpc": 0}

    async def http(server: Server) -> str:
        """One connection, used again and again until the server says that it closes."""
        host, port = server.host.split(":")
        content = httpx.Request("POST", "http://x", json=body(half)).content
        request = b"POST /v2/models/made/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
            len(content), content,
        )  # fmt: skip
        reader, writer = await asyncio.open_connection(host, int(port))
        while True:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            data = json.loads(await reader.readexactly(length))["outputs"][0]["data"]
            np.testing.assert_allclose(data, expected, rtol=1e-4, atol=1e-4)
            counts["http"] += 1
            if counts["http"] > 20 and counts["grpc"] > 20:
                enough.set()
            if b"connection: close" in head:
                writer.close()
                return "told"

    async def rpc(server: Server) -> str:
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            tensor = triton_grpc_aio.InferInput("coefficients", [1, 6], "FP32")
            tensor.set_data_from_numpy(half.random(1, 6))
            while True:
                try:
                    found = await client.infer("made", [tensor])
                except InferenceServerException as error:
                    return str(error.status())
                np.testing.assert_allclose(found.as_numpy("logits")[0], expected, rtol=1e-4, atol=1e-4)
                counts["grpc"] += 1

    async def everybody(server: Server) -> list[str]:
        clients = [asyncio.create_task(each(server)) for each in (http, rpc) for _ in range(6)]
        await enough.wait()
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*clients)

    with serving(folder) as server:
        ends = asyncio.run(asyncio.wait_for(everybody(server), HANGING))
        assert server.process.wait(HANGING) == 0
        server.read_on()
        assert [bool(server.events(name)) for name in ("draining", "stopped", "fault")] == [True, True, False]
    assert ends == ["told"] * 6 + ["StatusCode.UNAVAILABLE"] * 6


async def stop_with_a_queue(server: Server, half: Half) -> list[Any]:
    """Many requests over as many connections, SIGTERM while they wait, and what became of each."""
    limits = httpx.Limits(max_connections=300)
    async with httpx.AsyncClient(verify=False, timeout=HANGING, limits=limits) as client:
        url = f"{server.rest}/v2/models/made/infer"
        asked = [asyncio.create_task(client.post(url, json=body(half))) for _ in range(250)]
        while "splitveil_requests_in_flight 2" not in (await client.get(f"{server.rest}/metrics")).text:
            await asyncio.sleep(0)  # until there are two hundred, or 20 to 29
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("enough_time", [True, False])
def test_what_waits_is_answered_within_the_time_for_draining(tmp_path: Path, enough_time: bool) -> None:
    """What is answered is right, and says that the connection ends; what does not fit into the time is cut off."""
    folder = server_bundle(tmp_path / "bundle", work=60)
    half = Half(folder)
    expected = half.logits(half.random(1, 6))[0]
    with serving(folder, "--drain", HANGING if enough_time else 0.05, "--max-batch", 1) as server:
        ends = asyncio.run(asyncio.wait_for(stop_with_a_queue(server, half), HANGING))
        assert server.process.wait(HANGING) == 0
    answered = [end for end in ends if not isinstance(end, httpx.HTTPError)]
    for end in answered:
        np.testing.assert_allclose(end.json()["outputs"][0]["data"], expected, rtol=1e-4, atol=1e-4)
    if enough_time:
        # Not before they were accepted can they be lost: what was still on its way may find the door closed.
        assert len(answered) >= 20
        assert sum(end.headers.get("connection") == "close" for end in answered) >= 10
    else:
        assert len(answered) < len(ends)


def test_ready_turns_before_the_listener_closes(tmp_path: Path) -> None:
    settings = Settings()
    from splitveil.serve import application

    app = application(open_models([server_bundle(tmp_path / "bundle")], settings), settings)

    async def ask(path: str) -> int:
        async with httpx.AsyncClient(
            verify=False, transport=httpx.ASGITransport(app), base_url="http://here"
        ) as client:
            return (await client.get(path)).status_code

    assert asyncio.run(ask("/v2/health/ready")) == 200
    app.state.service.draining = True
    assert asyncio.run(ask("/v2/health/ready")) == 503
    assert asyncio.run(ask("/v2/models/made/ready")) == 503
    assert asyncio.run(ask("/v2/health/live")) == 200


def test_the_second_server_on_a_port_is_refused(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    with serving(folder) as server:
        for option, address in (("--http-port", server.host), ("--grpc-port", server.grpc)):
            other = "--grpc-port" if option == "--http-port" else "--http-port"
            command = [
                sys.executable,
                "-m",
                "splitveil",
                "serve",
                str(folder),
                option,
                address.split(":")[1],
                other,
                "0",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
            assert done.returncode == 2
            assert "cannot listen on 127.0.0.1" in done.stderr.splitlines()[-1]
            assert done.stderr.rstrip().endswith("; choose another address or port")
            assert done.stdout == ""


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    settings = Settings()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="is no bundle"):
        open_models([tmp_path / "missing"], settings)
    with pytest.raises(ServeError, match="no server bundle"):
        open_models([tmp_path / "empty"], settings)
    server_bundle(tmp_path / "both" / "server")
    with pytest.raises(ServeError, match=r"serve .*both/server"):
        open_models([tmp_path / "both"], settings)
    server_bundle(tmp_path / "misnamed" / "face" / "1")
    with pytest.raises(ServeError, match="'made'"):
        open_models([tmp_path / "misnamed"], settings)
    one, two = server_bundle(tmp_path / "one"), server_bundle(tmp_path / "two", seed=1)
    with pytest.raises(ServeError, match="second model"):
        open_models([one, two], settings)
    with pytest.raises(ServeError, match="no bundle"):
        open_models([], settings)


def test_signatures_are_required_at_reload_too(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    folder = server_bundle(tmp_path / "bundle", private_key=private)
    half = Half(folder)
    settings = Settings(public_key=public)
    models = open_models([folder], settings)
    put(server_bundle(tmp_path / "forged", seed=1), folder)

    async def reload() -> None:
        with pytest.raises(ServeError, match="refused"):
            await models.load("made")

    asyncio.run(reload())
    assert models.get("made").manifest.identity == half.manifest.identity
    with pytest.raises(BundleError, match="sign"):
        open_models([tmp_path / "forged"], settings)


def test_the_server_runs_without_torch(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'scipy', 'sklearn', 'matplotlib'): sys.modules[name] = None\n"
        "from splitveil.serve import Settings, application, open_models, serve\n"
        f"application(open_models([{str(folder)!r}], Settings()), Settings())\n"
        "assert not [name for name in sys.modules if name.startswith(('splitveil.client', 'splitveil.obfuscate', "
        "'splitveil.data', 'splitveil.models'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, done.stderr


def test_no_name_leads_out_of_the_folder_of_models(tmp_path: Path) -> None:
    server_bundle(tmp_path / "models" / "made" / "1")
    server_bundle(tmp_path / "7")
    settings = Settings()
    models = open_models([tmp_path / "models"], settings)
    for name in ("..", "../models", "made/../../", "", "made\0", str(tmp_path), "x" * 5000):
        with pytest.raises(ServeError, match="no model"):
            asyncio.run(models.load(name))
    assert list(models.places) == ["made"]
