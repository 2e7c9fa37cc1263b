"""Programs run under strace: what they connect to, which names they look up, which files they write."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import pytest

SOURCE = Path(__file__).parents[1] / "src"
# Datagrams may be sent without a connect.
CALLS = (
    "connect", "sendto", "sendmsg", "sendmmsg", "open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod",
    "mknodat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "truncate",
)  # fmt: skip
# What the C library reads to look up a name. Not /etc/resolv.conf, which gRPC reads at its start, name or not.
RESOLVER = ("/etc/hosts", "/etc/gai.conf")
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")(?:::ffff:)?([^"]+)"')


@dataclass(frozen=True)
class Trace:
    """What a program and its children did.

    Attributes:
        peers: addresses, "host:port", or paths of sockets, that it connected or sent datagrams to.
        resolver: files of the name resolver that it opened.
        written: files and folders that it made, opened for writing, renamed or linked.
    """

    peers: frozenset[str]
    resolver: frozenset[str]
    written: frozenset[str]

    def unexpected(self, *, peers: Sequence[str] = (), folders: Sequence[Path] = ()) -> list[str]:
        """All of it but the allowed peers, what lies in the allowed folders, /dev/null, and semaphores.

        Semaphores are memory that processes share; joblib makes one when scikit-learn is imported.
        """
        allowed = ("/dev/null", *(str(folder.resolve()) for folder in folders))
        written = {
            path
            for path in self.written
            if not path.startswith("/dev/shm/sem.")
            and not any(path == place or path.startswith(place + "/") for place in allowed)
        }
        return sorted((self.peers - set(peers)) | self.resolver | written)


@cache
def strace() -> str:
    """The program; without one that works, the test fails in CI and is skipped elsewhere."""
    program = shutil.which("strace")
    trouble = "strace is not installed: run scripts/install-strace" if program is None else ""
    if program:
        probe = subprocess.run(
            [program, "-f", "--seccomp-bpf", "-o", os.devnull, "true"], capture_output=True, text=True
        )
        trouble = f"strace cannot trace here: {probe.stderr.strip()[-200:]}" if probe.returncode else ""
    if trouble:
        pytest.fail(trouble) if os.environ.get("CI") else pytest.skip(trouble)
    assert program
    return program


class Traced:
    """A program under strace, in a minimal environment: a CI's own variables would switch ONNX Runtime's reports off.

    Attributes:
        home, temporary: its home folder and its folder for temporary files, empty at the start.
        process: strace itself.
    """

    def __init__(self, command: Sequence[object], folder: Path, **variables: str) -> None:
        folder.mkdir(parents=True)
        self.home, self.temporary = folder / "home", folder / "tmp"
        self.home.mkdir()
        self.temporary.mkdir()
        self._log = folder / "strace"
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "USER": "somebody",  # as after a login; without it the user's name is looked up
            **variables,
        }  # fmt: skip
        tracer = [strace(), "-f", "-qq", "-y", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}", "-o", str(self._log)]
        self.process = subprocess.Popen(
            [*tracer, *map(str, command)], env=environment, cwd=folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def child(self) -> int:
        """The program's process, for signals."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def end(self, timeout: float = 120.0) -> tuple[int, str, str]:
        """Wait: exit code, stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, out, err

    def trace(self) -> Trace:
        """What the program did, once it has ended."""
        peers, resolver, written = set[str](), set[str](), set[str]()
        for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
            if (call := _CALL.match(line)) is None:
                continue
            name, arguments = call.groups()
            if name in ("connect", "sendto", "sendmsg", "sendmmsg"):
                peers |= set(_peers(arguments))
                continue
            paths = [os.path.normpath(Path(folder) / path) for folder, path in _PATH.findall(arguments)]
            if name not in ("open", "openat", "openat2") or re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", arguments):
                written |= set(paths)
            resolver |= set(paths) & set(RESOLVER)
        return Trace(frozenset(peers), frozenset(resolver), frozenset(written))


def _peers(arguments: str) -> list[str]:
    """Of a connect or a datagram; none where the socket has its peer already."""
    found = [f"{host}:{port}" for port, host in _ADDRESS.findall(arguments)]
    return found + re.findall(r'sun_path=@?"([^"]*)"', arguments)
