"""A fit over two processes: the same alignment, a dead process that is reported, a restart that continues."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.fitting.fit import fit
from incline_fast.states.hidden_states import collect

# Rank 1 ends without a word after its first batch, as a process that the system kills does.
DIES = """
import os
from incline_fast.states import hidden_states
write = hidden_states.Shards.write
def write_and_die(*arguments):
    write(*arguments)
    os._exit(9)
hidden_states.Shards.write = write_and_die
from incline_fast.cli.app import main
main()
"""
COMPLETES = "from incline_fast.cli.app import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    tiny("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    pairs = zip(dict.fromkeys(sentences(400, 0, 60)), dict.fromkeys(sentences(400, 1, 60)), strict=False)
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in list(pairs)[:120]))
    return folder


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), **more}


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    return ["fit", str(folder / "model"), "--pairs", str(folder / "pairs.tsv"), "--template", "{sentence} w9",
            "--lam", "loo", "-o", str(folder / out), *more]  # fmt: skip


def processes(programs: list[str], command: list[str]) -> list[subprocess.Popen[str]]:
    """One process per program with the environment that torchrun gives, but no agent that ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(len(programs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *command],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, program in enumerate(programs)
    ]


@pytest.fixture(scope="module")
def single(folder) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", "incline_fast", *arguments(folder, "single.safetensors")]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    return load_file(folder / "single.safetensors")


def dense(tensors: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    up, down = tensors[f"layer.{layer}.up"], tensors.get(f"layer.{layer}.down")
    return up if down is None else up @ down


def assert_same(folder: Path, out: str, single: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / out)
    assert found.keys() == single.keys()
    for name, expected in single.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


def test_torchrun_gives_the_alignment_of_one_process(folder, single):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "incline_fast"]
    done = subprocess.run(
        [*command, *arguments(folder, "two.safetensors")], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same(folder, "two.safetensors", single)
    # One process speaks for all.
    assert done.stdout.count("wrote ") == 1


def test_a_dead_process_is_reported_and_a_restart_continues(folder, single):
    command = arguments(folder, "restarted.safetensors", "--resume", str(folder / "states"), "--rank-timeout", "60")
    survivor, dead = processes([COMPLETES, DIES], command)
    message = survivor.communicate(timeout=100)[1]
    dead.communicate()
    assert (survivor.returncode, dead.returncode) == (1, 9)
    assert "incline-fast: a process of this run has died or did not answer" in message.splitlines()[-1]
    assert not (folder / "restarted.safetensors").exists()
    kept = sorted((folder / "states" / "source").glob("shard-*"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) >= 2
    running = processes([COMPLETES, COMPLETES], command)
    messages = [process.communicate(timeout=100)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], messages
    assert [path.stat().st_mtime_ns for path in kept] == times
    found = load_file(folder / "restarted.safetensors")
    for layer in (1, 2, 3):
        # Other batches than in one go, so fp32 states are rounded differently.
        torch.testing.assert_close(dense(found, layer), dense(single, layer), rtol=1e-3, atol=1e-4)


def test_without_a_process_group_it_is_an_error():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    with pytest.raises(ValueError, match="distributed is True without a process group"):
        collect(model, tokenizer, ["w5 w6"], distributed=True, progress=False)
    with pytest.raises(ValueError, match="distributed is True without a process group"):
        fit(model, tokenizer, ["w5 w6", "w7"], ["w8", "w9"], distributed=True, progress=False)
