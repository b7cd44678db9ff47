"""The plan of a fit: its groups, its arithmetic, and its memory against what a fit really allocates."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from incline_fast import distributed
from incline_fast.fitting.fit import fit, fit_states
from incline_fast.fitting.memory_plan import format_bytes, parse_bytes, plan_fit


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in known | set(self._sizes):
                storage = leaf.untyped_storage()
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize(("n", "d"), [(64, 512), (200, 512), (511, 512), (600, 512), (2000, 256)])
def test_the_memory_of_a_solve_is_what_the_plan_says(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    X, Y = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)
    with PeakMemory() as memory:
        fit_states({1: X}, {1: Y}, lam="loo", progress=False)
    plan = plan_fit(n, d, [1])
    assert memory.peak <= plan.solve_bytes + plan.map_bytes <= 1.6 * memory.peak
    assert plan.state_bytes == X.nbytes + Y.nbytes


def test_eighty_layers_of_8192_in_64_gib() -> None:
    plan = plan_fit(20_000, 8192, range(1, 81), memory_budget="64GiB")
    assert [site for group in plan.groups for site in group] == list(range(1, 81))
    assert len({len(group) for group in plan.groups}) <= 2  # as equal as whole numbers allow
    assert plan.peak_bytes <= 64 * 2**30
    # By hand: maps 80 * 256 MiB, states of a layer 1.22 GiB; one group fewer would not fit.
    assert plan.map_bytes == 4 * 8192**2 + 4 * 8192
    assert plan.state_bytes == 2 * 20_000 * 8192 * 4
    held = {count: -(-80 // count) * plan.state_bytes + plan.solve_bytes + 80 * plan.map_bytes for count in (3, 4)}
    assert len(plan.groups) == 4
    assert plan.peak_bytes == held[4] <= 64 * 2**30 < held[3]
    assert "80 layers of d = 8192, 20000 pairs" in str(plan)
    assert f"{len(plan.groups)} groups of layers" in str(plan)


def test_without_a_budget_all_layers_are_one_group() -> None:
    plan = plan_fit(500, 8192, range(1, 81))
    assert plan.groups == (tuple(range(1, 81)),)
    assert "1 group of layers" in str(plan)
    assert "budget: no limit" in str(plan)


def test_a_budget_below_one_layer_says_what_one_layer_takes() -> None:
    with pytest.raises(ValueError, match=r"memory_budget is 1 MiB; one layer at a time takes .* one solve"):
        plan_fit(500, 4096, range(1, 33), memory_budget=2**20)
    least = plan_fit(500, 4096, range(1, 33))
    exact = least.solve_bytes + 32 * least.map_bytes + least.state_bytes
    assert len(plan_fit(500, 4096, range(1, 33), memory_budget=exact).groups) == 32
    with pytest.raises(ValueError, match="memory_budget is"):
        plan_fit(500, 4096, range(1, 33), memory_budget=exact - 1)


@pytest.mark.parametrize(("text", "expected"), [("16GiB", 2**34), ("1.5 kB", 1500), ("12", 12), (" 2TiB ", 2**41)])
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "3 gib", "1e9", "4 GiB more"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 16GiB"):
        parse_bytes(text)


def test_sizes_are_written() -> None:
    assert [format_bytes(value) for value in (0, 999, 1024, 3 * 2**29, 2**50)] == [
        "0 B", "999 B", "1 KiB", "1.5 GiB", "1.02e+03 TiB"]  # fmt: skip


def test_a_plan_of_nothing_is_refused() -> None:
    for arguments in ((0, 8, [1]), (5, 0, [1]), (5, 8, [])):
        with pytest.raises(ValueError, match="expected at least one of each"):
            plan_fit(*arguments)


def test_groups_fit_the_same_alignment_and_keep_their_states_apart(tmp_path) -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    source, target = sentences(12, 0, 20), sentences(12, 1, 20)
    d, layers = model.config.hidden_size, range(1, model.config.num_hidden_layers + 1)
    one = plan_fit(12, d, layers)
    budget = one.solve_bytes + one.num_sites * one.map_bytes + one.state_bytes
    whole = fit(model, tokenizer, source, target, holdout=3, progress=False)
    grouped = fit(
        model, tokenizer, source, target, holdout=3, progress=False, memory_budget=budget, resume=tmp_path / "states"
    )
    assert grouped.metadata == whole.metadata
    assert sorted(grouped.maps) == sorted(whole.maps) == list(layers)
    for site in whole.maps:
        assert torch.equal(grouped.maps[site].as_dense(), whole.maps[site].as_dense())
        assert torch.equal(grouped.bias[site], whole.bias[site])
    assert sorted(path.name for path in (tmp_path / "states" / "source").iterdir()) == [
        f"sites-{site}-{site}" for site in layers
    ]


def test_every_process_of_a_torchrun_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.own_device("cuda") == "cuda:1"
    assert distributed.own_device("cuda:3") == "cuda:3"
    assert distributed.own_device("cpu") == "cpu"
