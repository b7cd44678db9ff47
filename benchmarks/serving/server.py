"""``vllm serve`` with the plugin, as a child process on loopback, and a small client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Server", "serve"]

START_SECONDS = 600


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process and the file that it logs to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        """Whether the process runs and its engine answers."""
        return self.process.poll() is None and httpx.get(f"{self.url}/health", timeout=30).status_code == 200

    def complete(self, prompt: str, map: str | None = None, **body: Any) -> httpx.Response:
        """One greedy completion, edited by a map if one is named; ``body`` adds to the request or changes it."""
        extra = {} if map is None else {"vllm_xargs": {"incline": map, **body.pop("xargs", {})}}
        request = {"model": "served", "prompt": prompt, "temperature": 0, "max_tokens": 16, **extra, **body}
        return httpx.post(f"{self.url}/v1/completions", json=request, timeout=300)

    def memory(self) -> int:
        """Resident bytes of the server and all its children."""
        pages = 0
        pending = [self.process.pid]
        while pending:
            pid = pending.pop()
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue  # it has ended
            pending.extend(map(int, children))
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serve(model: Path, maps: Path, log: Path, *options: str, **settings: Any) -> Iterator[Server]:
    """Start a server and stop it again.

    Args:
        model: folder of the model.
        maps: folder of the alignments.
        log: receives what the server prints.
        options: further arguments of ``vllm serve``.
        settings: further fields of the plugin's configuration.

    Raises:
        RuntimeError: it did not start; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = json.dumps({"incline_fast": {"maps": str(maps), **settings}})
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--served-model-name", "served"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--block-size", "32", "--max-num-batched-tokens", "512", "--max-num-seqs", "32"]
    command += ["--additional-config", configuration, *options]
    chosen = {"VLLM_PLUGINS": "incline_fast", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as file:
        # A group of its own, so that the engine and its workers end with it.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **chosen}, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait(server)
        yield server
    finally:
        _stop(process)


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if server.alive():
                return
        except httpx.HTTPError:
            time.sleep(1)
    raise RuntimeError(f"the server did not start:\n{server.log.read_text(errors='replace')[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
