"""Stand-ins for NVIDIA's libraries, so that a CUDA build of torch can be imported without them.

torch's wheel asks for 2 GB of libraries (cuBLAS, cuDNN, NCCL, ...) that only a GPU can use. The dynamic loader needs no
more of them than their names and symbols. This script reads from torch's own libraries which symbols those are, and
compiles for each missing library one that has them all. A call of such a symbol ends the process with its name: nothing
computes wrongly in silence.

    python stand_ins.py FOLDER_OF_TORCH FOLDER_FOR_THE_LIBRARIES
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Of these the symbols carry no version that names the library.
UNVERSIONED = {"nccl": "libnccl.so.2", "cuFile": "libcufile.so.0", "cusparseLt": "libcusparseLt.so.0"}
VERSIONS = {"NVSHMEM": "libnvshmem_host.so.3"}
FAMILIES = ("cublas", "cudnn", "cufft", "cufile", "cupti", "curand", "cusolver", "cusparse", "nccl", "nvshmem")
SYMBOL = re.compile(r"\bUND (?P<name>\w+)(@(?P<version>\S+))?")
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static void called(const char* name) {{
  fprintf(stderr, "%s was called, of which {library} has only a stand-in: this machine has no GPU\\n", name);
  abort();
}}
"""


def readelf(what: str, library: Path) -> str:
    """A table of an ELF file as text."""
    return subprocess.run(["readelf", what, "--wide", library], capture_output=True, text=True, check=True).stdout


def needed(library: Path) -> Iterator[str]:
    """Libraries of NVIDIA that a library is linked with."""
    names = re.findall(r"\(NEEDED\).*\[(\S+)\]", readelf("--dynamic", library))
    return (name for name in names if name.removeprefix("lib").lower().startswith(FAMILIES))


def undefined(library: Path) -> Iterator[tuple[str, str]]:
    """(library of NVIDIA or its symbol version, symbol) of what a library wants from others."""
    for match in SYMBOL.finditer(readelf("--dyn-syms", library)):
        name, version = match["name"], match["version"]
        if version is not None:
            yield version, name
        else:
            yield from ((owner, name) for prefix, owner in UNVERSIONED.items() if name.startswith(prefix))


def compile_stand_in(target: Path, symbols: set[tuple[str, str]]) -> None:
    """A library of functions that say their name and abort; ``symbols`` are (version or "", name)."""
    source = SOURCE.format(library=target.name)
    source += "".join(f'void {name}(void) {{ called("{name}"); }}\n' for _, name in sorted(symbols))
    versions: dict[str, list[str]] = defaultdict(list)
    for version, name in symbols:
        versions[version].append(f"{name};")
    nodes = [f"{version} {{ global: {' '.join(names)} }};" for version, names in versions.items() if version]
    with tempfile.TemporaryDirectory() as folder:
        code, script = Path(folder) / "stand_in.c", Path(folder) / "versions.map"
        code.write_text(source)
        script.write_text("\n".join(nodes))
        named = [f"-Wl,--version-script={script}"] if nodes else []
        command = ["gcc", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{target.name}", *named, "-o", target, code]
        subprocess.run(command, check=True)


def main() -> None:
    """Compile what is missing in the target folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", type=Path, help="the folder of the installed package torch")
    parser.add_argument("target", type=Path, help="where the libraries go; those that lie there already are kept")
    arguments = parser.parse_args()
    symbols: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for library in sorted((arguments.torch / "lib").glob("*.so")):
        for name in needed(library):
            symbols.setdefault(name, set())
        for owner, name in undefined(library):
            version = "" if owner in UNVERSIONED.values() else owner
            symbols[VERSIONS.get(owner, owner)].add((version, name))
    arguments.target.mkdir(parents=True, exist_ok=True)
    for name, wanted in sorted(symbols.items()):
        target = arguments.target / name
        if name.removeprefix("lib").lower().startswith(FAMILIES) and not target.exists():
            compile_stand_in(target, wanted)
            print(f"{name}: a stand-in with {len(wanted)} symbols")


if __name__ == "__main__":
    main()
