"""Numbers, lists and arrays of every kind at every entrance: the same result, or a refusal that names the argument."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from interventions import random_maps
from tiny_models import HIDDEN, prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast import AffineMap, Alignment, Ridge, RidgeAccumulator, fit, fit_states, intervene
from incline_fast.arguments import is_listing, matrix, number, numbers, usable_device, whole, wholes
from incline_fast.intervention.sweep import sweep
from incline_fast.states.hidden_states import collect

torch.manual_seed(0)
X, Y = torch.randn(40, 6), torch.randn(40, 3)


@pytest.mark.parametrize(
    "value", [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
)
def test_whole_numbers(value):
    assert whole("n", value) == 3
    assert type(whole("n", value)) is int
    assert number("n", value) == 3.0


@pytest.mark.parametrize(
    "value", [0.5, np.float16(0.5), np.array(0.5), torch.tensor(0.5, requires_grad=True), Fraction(1, 2)]
)
def test_numbers(value):
    assert number("alpha", value) == 0.5
    assert type(number("alpha", value)) is float


@pytest.mark.parametrize(
    "value", ["3", None, True, np.bool_(True), torch.tensor(True), 1j, [3], np.array([3]), torch.tensor([3]), b"3"]
)
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"size is .*; expected a number"):
        number("size", value)
    with pytest.raises(TypeError, match=r"size is .*; expected a whole number"):
        whole("size", value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -np.inf, torch.tensor(torch.nan), 10**400, np.float32("nan")]
)
def test_what_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"size is .*; it must be finite"):
        number("size", value)


LISTS = (
    [1, 2, 3], (1, 2, 3), range(1, 4), np.arange(1, 4), torch.arange(1, 4), np.array([1, 2, 3], dtype=np.uint8),
    [np.int64(1), torch.tensor(2), 3], {1: "a", 2: "b", 3: "c"}.keys(), {1, 2, 3},
)  # fmt: skip


@pytest.mark.parametrize("values", LISTS)
def test_lists_of_every_kind(values):
    assert wholes("layers", values) == [1, 2, 3]
    assert numbers("alphas", values) == [1.0, 2.0, 3.0]
    assert is_listing(values)
    assert wholes("layers", iter(values)) == [1, 2, 3]


@pytest.mark.parametrize(
    "values", [5, "1,2", None, {1: 2}, np.array(5), torch.tensor(5), np.eye(2), torch.eye(2), b"12"]
)
def test_what_is_no_list_is_refused_by_name(values):
    with pytest.raises(TypeError, match=r"layers (is|has shape) .*; expected a list of whole numbers"):
        wholes("layers", values)


@pytest.mark.parametrize("values", [[1.0], np.array([1.5]), torch.tensor([1.0]), [True], ["1"], [None], [[1]]])
def test_layers_are_whole_numbers(values):
    with pytest.raises(TypeError, match=r"layers\[0\] is"):
        wholes("layers", values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", ">f4", "<f8"])
def test_arrays_become_tensors_of_their_own(dtype):
    array = np.eye(3).astype(dtype)
    array.flags.writeable = False
    tensor = matrix("W", array[::-1, ::-1])
    assert torch.equal(tensor.double(), torch.eye(3).double())
    assert matrix("W", tensor) is tensor
    changing = np.eye(2)
    kept = matrix("W", changing)
    changing[:] = 7
    assert torch.equal(kept, torch.eye(2).double())


@pytest.mark.parametrize(
    "value",
    [
        [[1.0]],
        "W",
        None,
        np.array(["a"]),
        np.array([object()]),
        np.array([1 + 2j], dtype="complex256"),
        torch.eye(2).to_sparse(),
        torch.empty(1, device="meta"),
    ],
)
def test_what_is_no_matrix_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"^W (is|has)"):
        matrix("W", value)


def test_devices():
    assert usable_device("device", None) is None
    assert usable_device("device", "cpu") == torch.device("cpu")
    for device in ("cuda:99", "gpu", "hpu", 3.5):
        with pytest.raises(ValueError, match=r"device is .*cannot be used here"):
            usable_device("device", device)


class TestEntrances:
    """Where users hand such values over."""

    GRID = (0.01, 0.1, 1.0, 10.0)

    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter, lambda g: torch.tensor(g).double()])
    def test_grids_of_ridge(self, kind):
        expected = Ridge(self.GRID).fit(X, Y)
        fitted = Ridge(kind(self.GRID)).fit(X, Y)
        assert fitted.lam_ == pytest.approx(expected.lam_, rel=1e-6)
        assert torch.allclose(fitted.coef_, expected.coef_, rtol=1e-5)

    @pytest.mark.parametrize("lam", [np.float32(0.5), torch.tensor(0.5), np.array(0.5), Fraction(1, 2)])
    def test_one_lam(self, lam):
        assert torch.equal(Ridge(lam).fit(X, Y).coef_, Ridge(0.5).fit(X, Y).coef_)

    @pytest.mark.parametrize(
        "lam", ["0.5", None, True, -1, float("nan"), [0.1, "x"], [[0.1]], np.eye(2), 1j, Decimal("NaN")]
    )
    def test_lam_that_is_none_is_refused_by_name(self, lam):
        with pytest.raises((TypeError, ValueError), match="lam"):
            Ridge(lam)

    def test_data_of_ridge(self):
        fitted = Ridge(0.5).fit(X.numpy(), Y.numpy(), sample_weight=np.ones(40))
        assert torch.allclose(fitted.coef_, Ridge(0.5).fit(X, Y).coef_)
        assert torch.equal(fitted.predict(X.numpy()), fitted.predict(X))
        streamed = RidgeAccumulator(6, 3)
        streamed.update(X.numpy(), Y.numpy())
        assert torch.allclose(streamed.solve(Ridge(0.5)).coef_.float(), fitted.coef_, rtol=1e-4)

    @pytest.mark.parametrize("kind", [np.asarray, lambda t: np.asarray(t).astype(np.float64), np.asfortranarray])
    def test_maps_and_biases(self, kind):
        W, b = torch.randn(8, 8), torch.randn(8)
        alignment = Alignment.from_maps({np.int64(1): kind(W)}, bias={torch.tensor(1): kind(b)})
        assert alignment.layers == [1]
        assert torch.equal(alignment.maps[1].up[0].float(), W)
        assert torch.equal(alignment.bias[1].float(), b)
        assert torch.equal(AffineMap.dense(kind(W)).up[0].float(), W)
        low = AffineMap.low_rank(kind(W[:2]), kind(W[:, :2]))
        assert torch.allclose(low.as_dense()[0].float(), W[:, :2] @ W[:2], atol=1e-6)

    def test_strengths_and_layers_of_intervene(self):
        model, inputs = tiny("llama"), prompts()
        alignment = Alignment.from_maps(random_maps())

        def logits(**options):
            with torch.no_grad(), intervene(model, alignment, **options):
                return model(**inputs).logits

        expected = logits(alpha=0.5, layers=[1, 2])
        for alpha in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)):
            for layers in ((1, 2), range(1, 3), np.array([1, 2]), torch.tensor([2, 1]), {1, 2}):
                assert torch.equal(logits(alpha=alpha, layers=layers), expected)
        named = {np.int64(1): np.float64(0.5), torch.tensor(2): torch.tensor(0.5)}
        assert torch.equal(logits(alpha=named), expected)
        rows = logits(alpha=torch.tensor([0.1, 0.5, 1.0]), layers=[1, 2])
        for alpha in ([0.1, 0.5, 1.0], (0.1, 0.5, 1.0), np.array([0.1, 0.5, 1.0])):
            assert torch.equal(logits(alpha=alpha, layers=[1, 2]), rows)
        assert torch.equal(logits(alpha=range(3)), logits(alpha=torch.tensor([0.0, 1.0, 2.0])))

    @pytest.mark.parametrize(
        "alpha",
        ["0.5", None, True, [True, False], np.eye(2), [], [[0.5]], ["a"], [float("nan")], {1: [[0.5]]}, {"1": 0.5}, 1j],
    )
    def test_strengths_that_are_none_are_refused_by_name(self, alpha):
        with pytest.raises((TypeError, ValueError), match="alpha"):
            intervene(tiny("llama"), Alignment.from_maps(random_maps()), alpha=alpha)

    @pytest.mark.parametrize("layers", [1, "1", [1.0], [True], np.eye(2), {1: 2}, [], [1, 1], [9]])
    def test_layers_that_are_none_are_refused_by_name(self, layers):
        with pytest.raises((TypeError, ValueError), match=r"layers"):
            intervene(tiny("llama"), Alignment.from_maps(random_maps()), alpha=0.5, layers=layers)

    @pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, iter])
    def test_grids_and_layers_of_sweep(self, kind):
        model, tokenizer, alignment = tiny("llama"), tiny_tokenizer(), Alignment.from_maps(random_maps())
        options = {"source": np.array(["w5", "w6"]), "target": ("w7", "w8"), "progress": False}
        found = sweep(
            model,
            tokenizer,
            alignment,
            alphas=kind([0.25, 0.5]),
            layers=kind([1, 2]),
            batch_rows=np.int64(8),
            **options,
        )
        expected = sweep(model, tokenizer, alignment, alphas=[0.25, 0.5], layers=[1, 2], batch_rows=8, **options)
        assert found.alphas == expected.alphas
        assert torch.equal(found.kl, expected.kl)

    def test_arguments_of_fit_and_collect(self):
        model, tokenizer = tiny("llama"), tiny_tokenizer()
        source, target = sentences(20), sentences(20, 1)
        plain = fit(model, tokenizer, source, target, layers=[1, 2], lam={1: 0.5, 2: 1.0}, holdout=4, progress=False)
        other = fit(
            model, tokenizer, np.array(source), (text for text in target), layers=np.array([1, 2]),
            lam={np.int64(1): torch.tensor(0.5), 2: np.float32(1.0)}, holdout=np.int64(4), seed=np.int64(0),
            batch_tokens=torch.tensor(1024), progress=False,
        )  # fmt: skip
        assert all(torch.equal(plain.maps[site].as_dense(), other.maps[site].as_dense()) for site in (1, 2))
        states = collect(model, tokenizer, tuple(source), layers=range(1, 3), progress=False)
        arrays = {np.int64(site): rows.numpy() for site, rows in states.items()}
        alignment = fit_states(arrays, arrays, lam=np.array(0.5), holdout=torch.tensor(0.25), progress=False)
        assert alignment.layers == [1, 2]
        assert alignment.hidden_size == HIDDEN
