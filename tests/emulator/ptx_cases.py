"""Single PTX instructions, one thread for each element of the inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emulator import ptx

TEMPLATE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry one_instruction({parameters})
{{
  .reg .pred p<9>;
  .reg .b64 %address, %offset;
  .reg .b32 %lane;
  {registers}
  .shared .align 16 .b8 scratch[4096];
  mov.u32 %lane, %tid.x;
  {loads}
  {body}
  {stores}
  ret;
}}
"""


def evaluate(
    body: str, inputs: Sequence[NDArray], outputs: Sequence[np.dtype | type], threads: int = 0
) -> list[NDArray]:
    """Execute ``body``, which reads %i0, ... and writes %o0, ...; registers are as wide as the arrays' elements."""
    threads = threads or len(inputs[0])
    inputs = [np.ascontiguousarray(value) for value in inputs]
    results = [np.zeros(threads, dtype) for dtype in outputs]
    named = [
        *((f"i{k}", value) for k, value in enumerate(inputs)),
        *((f"o{k}", value) for k, value in enumerate(results)),
    ]
    source = TEMPLATE.format(
        parameters=", ".join(f".param .u64 {name}" for name, _ in named),
        registers=" ".join(f".reg .b{8 * max(value.itemsize, 2)} %{name};" for name, value in named),
        loads=" ".join(
            _move("ld.global.b{bits} %{name}, [%address];", f"i{k}", value) for k, value in enumerate(inputs)
        ),
        body=body,
        stores=" ".join(
            _move("st.global.b{bits} [%address], %{name};", f"o{k}", value) for k, value in enumerate(results)
        ),
    )
    ptx.launch(source, "one_instruction", (1, 1, 1), (threads, 1, 1), [value for _, value in named])
    return results


def one(body: str, inputs: Sequence[NDArray], output: np.dtype | type) -> NDArray:
    """The only result of ``body``, which writes %o0."""
    return evaluate(body, inputs, [output])[0]


def _move(statement: str, name: str, value: NDArray) -> str:
    address = f"ld.param.u64 %address, [{name}]; mul.wide.u32 %offset, %lane, {value.itemsize};"
    return f"{address} add.u64 %address, %address, %offset; " + statement.format(bits=8 * value.itemsize, name=name)
