"""Edits in front of the norms of a model that is built as vLLM builds them, from banks that are written at run time."""

from __future__ import annotations

import pytest
import torch
from served import LAYERS, LAYOUT, Config, D, Model, alignment, folder

from incline_fast.alignment.alignment import Alignment
from incline_fast.ops import reference
from incline_fast.serving.bank import Bank
from incline_fast.serving.config import BankLayout, ServingConfig
from incline_fast.serving.errors import RequestError, ServingError
from incline_fast.serving.plan import Span, StepPlan
from incline_fast.serving.request import Edit
from incline_fast.serving.self_check import check_edits
from incline_fast.serving.sites import check_norms, edit_in_front, find_sites
from incline_fast.serving.worker import WorkerEdits

CPU = torch.device("cpu")


def states(model: Model, x: torch.Tensor, edit: dict[int, tuple[Alignment, float, float]]) -> torch.Tensor:
    """The model's definition with row i edited by ``edit[i]`` at every site of its alignment."""

    def edited(site: int, residual: torch.Tensor) -> torch.Tensor:
        residual = residual.clone()
        for row, (chosen, alpha, beta) in edit.items():
            if site in chosen.maps:
                map = chosen.maps[site]
                maps = (map.down, map.up, None, None, chosen.bias.get(site))
                row_edit = reference.Edit(*maps, alpha, beta, None)
                result, _ = reference.affine_residual(residual[row : row + 1], None, row_edit)
                residual[row] = result[0]
        return residual

    with torch.no_grad():
        for site, block in enumerate(model.model.layers):
            x = edited(site, x)
            y, x = block.post_attention_layernorm(block.input_layernorm(x), x)
            x = x + block.mlp(y)
        return model.model.norm(edited(LAYERS, x))


@pytest.mark.parametrize("rank", [4, None])
def test_rows_of_mixed_maps_follow_the_definition(tmp_path, rank):
    first, second = alignment(0, rank=rank), alignment(1, rank=3, sites=[0, 2])
    plain, x = Model(), torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    expected = states(plain, x, {1: (first, 0.3, 1.0), 4: (second, -0.2, 1.2)})
    model = Model()
    layout = BankLayout(None if rank is None else 8, 3, "float32")
    edits = WorkerEdits(model, Config(), ServingConfig("x"), layout, 8, torch.float32, CPU)
    for name, content in (("a", first), ("b", second)):
        edits.bank.load(name, content, ())
    slots = [edits.bank.slot_of(name) for name in ("a", "b")]
    assert slots[1].tolist() == [1, -1, 1, -1]
    spans = [Span(Edit("a", 0.3, 1.0, "last", 0), slots[0], 1, 0, 1, 1)]
    spans.append(Span(Edit("b", -0.2, 1.2, "last", 0), slots[1], 4, 0, 1, 1))
    edits.plan.fill(spans)
    result = model(x.clone())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    others = [0, 2, 3]
    assert torch.equal(result[others], plain(x.clone())[others]), "plain rows keep their bits"
    edits.plan.clear()
    assert torch.equal(model(x.clone()), plain(x.clone()))


def test_parameters_keep_their_names():
    model, plain = Model(), Model()
    WorkerEdits(model, Config(), ServingConfig("x"), LAYOUT, 8, torch.float32, CPU)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(model.model.norm, type(plain.model.norm))


def test_slots(tmp_path):
    bank = Bank(ServingConfig("x"), LAYOUT, LAYERS + 1, D, CPU)
    addresses = [site.up.data_ptr() for site in bank.sites]
    for content in "abc":
        bank.load(content, alignment(), "abc")
    assert bank.contents() == ["a", "b", "c"]
    with pytest.raises(RequestError, match="all 3 slots are taken"):
        bank.load("d", alignment(), "abc")
    bank.load("d", alignment(), "ac")
    assert bank.contents() == ["a", "d", "c"]
    assert bank.slot_of("b") is None
    bank.load("a", alignment(rank=9, sites=[0]), "acd")  # resident already: nothing is written
    assert [site.up.data_ptr() for site in bank.sites] == addresses


def test_a_map_that_does_not_fit_leaves_its_slot_empty():
    bank = Bank(ServingConfig("x"), BankLayout(8, 3, "float32"), LAYERS + 1, D, CPU)
    with pytest.raises(RequestError, match="does not fit a bank of rank 16"):
        bank.load("a", alignment(rank=None), ())
    assert bank.contents() == []


def test_memory_cap():
    config = ServingConfig("x", max_bytes=10_000)
    with pytest.raises(ServingError, match=r"take 25344 bytes; max_bytes is 10000. Lower max_maps or max_rank"):
        Bank(config, LAYOUT, LAYERS + 1, D, CPU)
    large = ServingConfig("x", max_bytes=25_344)
    assert Bank(large, LAYOUT, LAYERS + 1, D, CPU).num_bytes() <= 25_344


def test_self_check_finds_an_edit_that_is_skipped():
    model = Model()
    edits = WorkerEdits(model, Config(), ServingConfig("x"), LAYOUT, 3, torch.float32, CPU)
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(3))
    edits.check(lambda count: model(x[:count].clone()))
    assert edits.plan.edited == 0
    block = model.model.layers[2]
    block.input_layernorm.__class__ = type(block.post_attention_layernorm)
    with pytest.raises(ServingError, match=r"edits do not reach model.layers.2.input_layernorm"):
        edits.check(lambda count: model(x[:count].clone()))


def test_self_check_finds_an_edit_of_a_wrong_row():
    model = Model()
    sites = find_sites(model, Config())
    bank, plan = Bank(ServingConfig("x"), LAYOUT, LAYERS + 1, D, CPU), StepPlan(LAYERS + 1, 8, CPU)
    edit_in_front(sites, bank, plan)
    x = torch.randn(1, D).expand(8, D)
    with pytest.raises(ServingError, match="changed a row that it does not name"):
        check_edits(lambda count: model(x[:count].clone()) + plan.edited, sites, bank, plan, 8)


class Unknown(Config):
    model_type = "mamba"


class PostNorm(Config):
    model_type = "olmo2"


class Short(Config):
    num_hidden_layers = LAYERS + 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Unknown(), "model_type 'mamba', whose norms are not known; known: bloom, "),
        (PostNorm(), "'olmo2' read their input without a norm"),
        (Short(), "model.layers holds 3 blocks; the config says 4"),
    ],
)
def test_models_whose_norms_are_not_found_are_refused(config, message):
    with pytest.raises(ServingError, match=message):
        find_sites(Model(), config)


def test_a_norm_that_does_not_add_its_residual_is_refused():
    model = Model()
    model.model.norm.forward = lambda x, residual=None: (x, residual)
    with pytest.raises(ServingError, match="does not add the residual"):
        check_norms(find_sites(model, Config()), D, torch.float32, CPU)


def test_loading_says_why_not(tmp_path):
    config = folder(tmp_path, a=alignment(), wide=Alignment.from_maps({0: torch.zeros(4, 4)}))
    edits = WorkerEdits(Model(), Config(), config, LAYOUT, 8, torch.float32, CPU)
    path = str(tmp_path / "a.safetensors")
    assert "changed while it was loaded" in edits.load(path, "0" * 32, ())
    assert "there is no alignment" in edits.load(str(tmp_path / "b.safetensors"), "0" * 32, ())
    from incline_fast.serving.catalog import content_hash

    wide = tmp_path / "wide.safetensors"
    assert "does not fit this model" in edits.load(str(wide), content_hash(wide), ())
    assert edits.load(path, content_hash(tmp_path / "a.safetensors"), ()) == ""
    assert edits.bank.contents() == [content_hash(tmp_path / "a.safetensors")]
