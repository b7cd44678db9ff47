"""Models that several processes run together: each has a copy (DDP) or a part (FSDP, tensor parallelism, stages)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from doors import ALIGNMENT, hooked
from interventions import CLOSE, generate
from tiny_models import prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig
from transformers.distributed.pipeline_parallel import apply_pipeline_parallelism

from incline_fast import UnsupportedModelError, fit, intervene
from incline_fast.intervention.sweep import sweep
from incline_fast.models.architectures import describe
from incline_fast.models.identity import identify, weights_hash
from incline_fast.states.hidden_states import collect

TEXTS = sentences(5)
CPU = torch.device("cpu")
fitted = partial(fit, layers=[1, 2], progress=False)
swept = partial(sweep, alphas=[0.5], progress=False)
SPLIT = {
    "self_attn.q_proj": ColwiseParallel,
    "self_attn.k_proj": ColwiseParallel,
    "self_attn.v_proj": ColwiseParallel,
    "self_attn.o_proj": RowwiseParallel,
    "mlp.gate_proj": ColwiseParallel,
    "mlp.up_proj": ColwiseParallel,
    "mlp.down_proj": RowwiseParallel,
}


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def fsdp1():
    return FullyShardedDataParallel(tiny("llama"), device_id=CPU)


def fsdp1_in_blocks():
    model = tiny("llama")
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = FullyShardedDataParallel(block, device_id=CPU)
    return model


def fsdp1_of_one_part():
    model = tiny("llama")
    model.model.layers[1].mlp = FullyShardedDataParallel(model.model.layers[1].mlp, device_id=CPU)
    return model


def fsdp2():
    model = tiny("llama")
    for block in model.model.layers:
        fully_shard(block, mesh=mesh())
    return fully_shard(model, mesh=mesh())


def fsdp2_in_blocks():
    model = tiny("llama")
    fully_shard(model.model.layers[2], mesh=mesh())
    return model


def fsdp2_inside_adapters():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    fully_shard(model.base_model.model.model.layers[0], mesh=mesh())
    return model


def norms_by_sequence():
    model = tiny("llama")
    parallelize_module(model, mesh(), {"model.norm": SequenceParallel()})
    return model


def stages():
    return apply_pipeline_parallelism(tiny("llama"), mesh())


def split():
    """Tensor parallelism of torch."""
    model = tiny("llama")
    for block in model.model.layers:
        parallelize_module(block, mesh(), {path: style() for path, style in SPLIT.items()})
    return model


REFUSED = {
    make.__name__: make
    for make in (fsdp1, fsdp1_in_blocks, fsdp1_of_one_part, fsdp2, fsdp2_in_blocks, fsdp2_inside_adapters,
                 norms_by_sequence)
}  # fmt: skip


def check_refused(model):
    takes = [
        describe,
        identify,
        weights_hash,
        lambda model: collect(model, tiny_tokenizer(), TEXTS, progress=False),
        lambda model: fitted(model, tiny_tokenizer(), TEXTS, TEXTS),
        lambda model: intervene(model, ALIGNMENT, alpha=0.6),
        lambda model: swept(model, tiny_tokenizer(), ALIGNMENT, ["w5 w6"], ["w7"]),
    ]
    for take in takes:
        with pytest.raises(UnsupportedModelError, match=r"is shared out among processes .*get_model_state_dict"):
            take(model)


def check_copies():
    """DDP is refused; the model inside it is edited however it is called, and every process has its own batch."""
    model, plain = tiny("llama").requires_grad_(True), tiny("llama")
    ddp = DistributedDataParallel(model)
    for take in (describe, weights_hash, lambda one: intervene(one, ALIGNMENT, alpha=0.6)):
        with pytest.raises(
            UnsupportedModelError, match=r"DistributedDataParallel .*pass the model inside: model\.module"
        ):
            take(ddp)
    check_as_plain(ddp.module, plain, dist.get_rank(), call=ddp)
    assert weights_hash(ddp.module) == weights_hash(plain)


def check_parts(model):
    """Tensor parallelism: the states between the parts are whole, so all is as with the plain model."""
    check_as_plain(model, tiny("llama"), 0)
    with pytest.raises(UnsupportedModelError, match=r"shared out among processes .*leave resume out"):
        collect(model, tiny_tokenizer(), TEXTS, progress=False, resume="nowhere")
    with pytest.raises(ValueError, match="distributed is True and the model's weights are shared out"):
        collect(model, tiny_tokenizer(), TEXTS, progress=False, distributed=True)


def check_as_plain(model, plain, seed, call=None):
    inputs, tokenizer = prompts(seed=seed + 1), tiny_tokenizer()
    expected = hooked(plain, inputs)
    with torch.no_grad(), intervene(plain, ALIGNMENT, alpha=0.6, positions="generated"):
        tokens = generate(plain, inputs)[0]
    with torch.no_grad(), intervene(plain, ALIGNMENT, alpha=0.6, mode="clean"):
        set_from_the_plain_run = plain(**inputs).logits
    for mode, logits in (("online", expected), ("clean", set_from_the_plain_run)):
        with torch.no_grad(), intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
            torch.testing.assert_close((call or model)(**inputs).logits, logits, **CLOSE)
    with torch.no_grad(), intervene(model, ALIGNMENT, alpha=0.6, positions="generated"):
        assert torch.equal(generate(model, inputs)[0], tokens)
    found, wanted = (collect(one, tokenizer, sentences(5, seed), progress=False) for one in (model, plain))
    for site in wanted:
        torch.testing.assert_close(found[site], wanted[site], **CLOSE)
    maps = [fitted(one, tokenizer, sentences(12, seed), sentences(12, 9)).maps for one in (model, plain)]
    for site in maps[1]:
        torch.testing.assert_close(maps[0][site].as_dense(), maps[1][site].as_dense(), rtol=1e-3, atol=1e-4)
    divergences = [swept(one, tokenizer, ALIGNMENT, ["w5 w6"], ["w7"]).kl for one in (model, plain)]
    torch.testing.assert_close(*divergences, **CLOSE)


def check_collected_weights():
    """What a refusal says to do."""
    plain = tiny("llama", seed=3)
    whole = get_model_state_dict(fsdp2(), options=StateDictOptions(full_state_dict=True))
    plain.load_state_dict(whole)
    found, wanted = (collect(one, tiny_tokenizer(), TEXTS, progress=False) for one in (plain, tiny("llama")))
    assert all(torch.equal(found[site], wanted[site]) for site in wanted)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching", "ignore:When using", "ignore:.*is deprecated")
class TestOneProcess:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_parts_of_a_model_are_refused(self, kind, alone):
        check_refused(REFUSED[kind]())

    def test_copies(self, alone):
        check_copies()

    def test_tensor_parallelism(self, alone):
        check_parts(split())


def _one_of_two(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for make in (*REFUSED.values(), stages):
        check_refused(make())
    check_copies()
    check_parts(split())
    check_parts(LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2)).eval())
    check_collected_weights()
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path):
    """All of the above between two processes, pipeline stages and the tensor parallelism of transformers besides."""
    tiny("llama").save_pretrained(tmp_path / "model")
    spawn(_one_of_two, (str(tmp_path / "store"), str(tmp_path / "model")), nprocs=2)
