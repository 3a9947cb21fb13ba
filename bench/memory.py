"""The memory plan against llama.cpp's own allocation: python bench/memory.py [--llama-cpp FOLDER] [--quick]

FOLDER holds llama-fit-params and llama-server (default: on PATH, else where CI=true make test keeps its build).

1. KV cache and state, and what it does with the context: header-only files with the shapes of the catalog's models, in
   contexts of 4k to 131k × f16, q8_0, q4_0 × 1 and 4 slots × micro-batches of 512 and 2048 × flash attention on and
   off, compared with what llama.cpp's allocator says without allocating.
2. Compute buffers: the same files in a real llama-server (its allocator's dry run counts logits that a server does not
   make), as far as this machine has the memory for their caches.
3. The usual formula, and "file size against 75 % of the memory", on the same cases: how often each says that a model
   fits which does not (a miss), and the other way round (a false alarm).
4. Projectors: header-only files with the shapes of the catalog's, in a real llama-server, which says what it reserves.
5. Two real servers at a filled context, the tiny model and 1 GB of random weights: the plan against their buffers and
   against the memory they really hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from bench.projectors import PROJECTORS
from bench.published_shapes import HEADERS
from bench.sparse import write
from cclocal import tiny
from cclocal.discovery.look import load_catalog
from cclocal.facts import Machine
from cclocal.memory.fit import Budget, fit
from cclocal.memory.footprint import CELLS, KV_TYPES, Footprint, MemoryConfig, compute_bytes, footprint, read_buffers
from cclocal.memory.gguf import Header, Tensor
from cclocal.memory.projector import projector_of
from cclocal.memory.shape import Shape, shape_of
from cclocal.models.headers import of_gguf
from cclocal.planning.memory import apple_budget
from cclocal.units import GIB

MIB = 2**20
#: llama.cpp prints hundredths of a mebibyte.
PRINTED_BYTES = 0.011 * MIB
CONTEXTS, KV, SLOTS, UBATCHES = (4096, 16384, 32768, 65536, 131072), ("f16", "q8_0", "q4_0"), (1, 4), (512, 2048)


def cases(*, quick: bool) -> Iterator[MemoryConfig]:
    contexts, slots = ((4096, 131072), (1,)) if quick else (CONTEXTS, SLOTS)
    for context, kv, n, ubatch, flash in product(contexts, KV, slots, UBATCHES, (True, False)):
        # llama.cpp refuses a quantised V without flash attention
        if flash or kv == "f16":
            yield MemoryConfig(context, kv, n, ubatch, flash)


def allocated(tool: Path, file: Path, serving: MemoryConfig) -> tuple[float, float, float] | None:
    """(KV bytes, state bytes, compute bytes) by llama.cpp's allocator."""
    done = subprocess.run(
        [
            *(str(tool), "-m", str(file), "-c", str(serving.context_tokens), "-fitp", "on", "-v", "-nr"),
            *(
                "-np",
                str(serving.slots),
                "-ub",
                str(serving.ubatch_tokens),
                "-b",
                str(max(2048, serving.ubatch_tokens)),
            ),
            *("-ctk", serving.kv_type, "-ctv", serving.kv_type, "-fa", "on" if serving.flash_attention else "off"),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    text = done.stdout + done.stderr
    printed = re.search(r"^Host \d+ \d+ (\d+)\s*$", done.stdout, re.MULTILINE)
    if not printed:
        return None
    caches = sum(float(mib) for mib in re.findall(r"llama_kv_cache: size =\s*([\d.]+) MiB", text))
    states = sum(float(mib) for mib in re.findall(r"llama_memory_recurrent: size =\s*([\d.]+) MiB", text))
    return caches * MIB, states * MIB, float(printed[1]) * MIB


def shape_in(file: Path) -> Shape:
    found = of_gguf(file)
    assert found is not None
    return found.shape


def compare_caches(tool: Path, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Part 1."""
    rows: dict[str, Any] = {}
    for name, made in HEADERS.items():
        file = folder / f"{name}.gguf"
        write(made(), file)
        shape = shape_in(file)
        right = wrong = refused = 0
        usual_off = []
        caches: dict[int, float] = {}
        largest: list[int] = []
        for serving in cases(quick=quick):
            real = allocated(tool, file, serving)
            if real is None:
                refused += 1
                continue
            ours = footprint(shape, serving, memory="host")
            same = abs(ours.kv_bytes - real[0]) < PRINTED_BYTES and abs(ours.state_bytes - real[1]) < PRINTED_BYTES
            right, wrong = right + same, wrong + (not same)
            if not same:
                print(f"  {name} {serving}: ours {ours.kv_bytes / MIB:.2f}, llama.cpp {real[0] / MIB:.2f} MiB")
            if serving.slots == 1 and serving.ubatch_tokens == 512 and serving.flash_attention:
                if serving.kv_type == "f16":
                    caches[serving.context_tokens] = real[0] + real[1]
                usual_off.append(usual_kv(shape, serving) / max(1, real[0] + real[1]) - 1)
        for share in (0.3, 0.7):
            largest.append(engine_maximum(tool, file, shape, share))
        rows[name] = {
            "cases": right + wrong,
            "equal": right,
            "refused_by_llama_cpp": refused,
            "usual_formula_off_percent": [round(100 * min(usual_off)), round(100 * max(usual_off))],
            "largest_context_off_tokens": largest,
            "f16_cache_bytes": caches,
        }
        line = rows[name]
        least, most = line["usual_formula_off_percent"]
        print(
            f"{name:26} {right:4} of {right + wrong:4} equal   usual formula {least:+5} to {most:+5} %   "
            f"largest context off by {largest} tokens",
            flush=True,
        )
        file.unlink()
    return rows


def engine_maximum(tool: Path, file: Path, shape: Shape, share: float) -> int:
    """How far our largest context is from the one found by asking llama.cpp for every number.

    The compute buffer is ours in both: the dry run's holds logits that a server does not make (part 2 compares it).
    """
    whole = footprint(shape, MemoryConfig(shape.native_context_tokens), memory="host").need_bytes
    budget_bytes = int(shape.weights_bytes + (whole - shape.weights_bytes) * share)
    ours = fit(shape, MemoryConfig(4096), Budget(budget_bytes, "bench")).max_context_tokens or 0
    low, high = 0, shape.native_context_tokens // CELLS
    while low < high:
        middle = (low + high + 1) // 2
        serving = MemoryConfig(middle * CELLS)
        real = allocated(tool, file, serving)
        need = sum(real[:2]) + shape.weights_bytes + compute_bytes(shape, serving) if real else float("inf")
        low, high = (middle, high) if need <= budget_bytes else (low, middle - 1)
    return ours - low * CELLS


def usual_kv(shape: Shape, serving: MemoryConfig) -> int:
    """What most tools compute: layers × KV heads × head size × 2, as if every layer were the first kind of full one."""
    full = next((layer for layer in shape.layers if layer.kind == "full"), shape.layers[0])
    elements = full.key_elements + (full.value_elements or full.key_elements)
    return int(len(shape.layers) * elements * serving.context_tokens * KV_TYPES[serving.kv_type])


# -- servers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(tool: Path, file: Path, serving: MemoryConfig, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A llama-server with this model, ready. Yields its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        *(str(tool), "-m", str(file), "-c", str(serving.context_tokens), "--port", str(port), "-lv", "4", "-nr"),
        *("-np", str(serving.slots), "-ub", str(serving.ubatch_tokens), "-ctk", serving.kv_type),
        *("-ctv", serving.kv_type, "-fa", "on" if serving.flash_attention else "off", "--cache-ram", "0"),
        *("--no-warmup", "--no-webui", "--offline"),
    ]
    with log.open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as child:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(1200):
                if child.poll() is not None:
                    raise RuntimeError(log.read_text("utf-8", "replace")[-500:])
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health") as reply:
                    if reply.status == 200:
                        break
                time.sleep(0.1)
            yield address, psutil.Process(child.pid)
        finally:
            child.kill()


def compare_compute(tool: Path, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Part 2."""
    rows: dict[str, Any] = {}
    free = psutil.virtual_memory().available
    for name, made in HEADERS.items():
        file = folder / f"{name}.gguf"
        write(made(), file)
        shape = shape_in(file)
        found = {}
        for context, ubatch in (
            ((4096, 512), (32768, 512)) if quick else ((4096, 512), (32768, 512), (131072, 512), (32768, 2048))
        ):
            serving = MemoryConfig(context, ubatch_tokens=ubatch)
            ours = footprint(shape, serving, memory="host")
            # caches are written to when they are made
            if ours.kv_bytes > free // 3:
                continue
            log = folder / "log"
            try:
                with server(tool, file, serving, log):
                    real = read_buffers(log.read_text("utf-8", "replace"))
            except RuntimeError as error:
                print(f"  {name}: {str(error).splitlines()[-1]}")
                continue
            assert real is not None
            found[f"{context}/{ubatch}"] = round((ours.compute_bytes - real.compute_bytes) / MIB, 1)
        rows[name] = found
        print(f"{name:26} compute, ours less llama-server's, MiB: {found}", flush=True)
        file.unlink()
    return rows


def compare_rules(caches: dict[str, Any], compute: dict[str, Any]) -> dict[str, Any]:
    """Part 3: who says of which model that it fits which Mac, against what parts 1 and 2 saw llama.cpp allocate."""
    counts = {
        rule: {"misses": 0, "false_alarms": 0} for rule in ("this plan", "usual formula", "75 % of RAM, 6 GB left")
    }
    total = 0
    for (name, made), ram_gib in product(HEADERS.items(), (16, 24, 32, 36, 64)):
        shape = shape_of(made())
        # the same at every context, as part 2 shows
        off = compute[name].get("32768/512", 0.0) * MIB
        for context, cache in caches[name]["f16_cache_bytes"].items():
            total += 1
            serving, ram = MemoryConfig(context), ram_gib * GIB
            budget = apple_budget(Machine("macos", "26.0", "arm64", ram))
            ours = footprint(shape, serving, memory="unified")
            real = shape.device_weights_bytes + cache + ours.compute_bytes - off
            says = {
                "this plan": fit(shape, serving, budget).fits,
                "usual formula": shape.weights_bytes + usual_kv(shape, serving) <= 0.75 * ram,
                "75 % of RAM, 6 GB left": 0.75 * ram - shape.weights_bytes >= 6 * GIB,
            }
            for rule, fits in says.items():
                counts[rule]["misses"] += fits and real > budget.size_bytes
                counts[rule]["false_alarms"] += real <= budget.size_bytes and not fits
    for rule, found in counts.items():
        print(f"{rule:26} {found['misses']:3} misses, {found['false_alarms']:3} false alarms of {total}")
    return {"cases": total, **counts}


def a_gigabyte(layers: int = 24) -> Header:
    """A plain model of 24 layers and a little over 1 GB in Q8_0, or of more."""
    width, heads, kv, size, inner, words = 1536, 12, 2, 128, 8960, 32000

    def q8(name: str, *dims: int) -> Tensor:
        return Tensor(name, dims, 8, dims[0] * dims[1] // 32 * 34)

    def norm(name: str) -> Tensor:
        return Tensor(name, (width,), 0, width * 4)

    tensors = [q8("token_embd.weight", width, words), norm("output_norm.weight"), q8("output.weight", width, words)]
    for i in range(layers):
        at = f"blk.{i}."
        tensors += [norm(f"{at}attn_norm.weight"), norm(f"{at}ffn_norm.weight")]
        tensors += [q8(f"{at}attn_q.weight", width, heads * size), q8(f"{at}attn_output.weight", heads * size, width)]
        tensors += [q8(f"{at}attn_{part}.weight", width, kv * size) for part in "kv"]
        tensors += [q8(f"{at}ffn_{part}.weight", width, inner) for part in ("gate", "up")]
        tensors.append(q8(f"{at}ffn_down.weight", inner, width))
    own = {
        "context_length": 32768,
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": size,
    }
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"w{i}" for i in range(words)],
        "tokenizer.ggml.token_type": [1] * words,
        "tokenizer.ggml.merges": ["w 0"],
        "tokenizer.ggml.eos_token_id": 0,
    }
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        **vocabulary,
        **{f"llama.{key}": value for key, value in own.items()},
    }
    return Header(metadata, tuple(tensors))


def filled(tool: Path, folder: Path) -> dict[str, Any]:
    """Part 4."""
    rows = {}
    little, large = folder / "tiny.gguf", folder / "gigabyte.gguf"
    little.write_bytes(tiny.gguf())
    write(a_gigabyte(), large, random_weights=True)
    for file, context in ((little, 32768), (large, 4096)):
        shape = shape_in(file)
        serving = MemoryConfig(context)
        plan = footprint(shape, serving, memory="host")
        log = folder / "log"
        with server(tool, file, serving, log) as (address, process):
            words = [200 + i % 1000 for i in range(context - 64)]
            body = json.dumps({"prompt": words, "n_predict": 0, "cache_prompt": True}).encode()
            request = urllib.request.Request(f"{address}/completion", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=3600) as reply:
                evaluated = json.load(reply)["timings"]["prompt_n"]
            held = process.memory_info().rss
            real = read_buffers(log.read_text("utf-8", "replace"))
        assert isinstance(real, Footprint)
        rows[file.stem] = {
            "context_tokens": context,
            "evaluated_tokens": evaluated,
            "planned_mib": round(plan.need_bytes / MIB),
            "buffers_mib": round(real.need_bytes / MIB),
            "held_mib": round(held / MIB),
        }
        print(f"{file.stem:10} {rows[file.stem]}", flush=True)
    return rows


def compare_projectors(server: Path, folder: Path) -> dict[str, Any]:
    """Part 4. The server says it before it finds that the projector is not this text model's."""
    rows: dict[str, Any] = {}
    text = folder / "text.gguf"
    text.write_bytes(tiny.gguf())
    for name, made in PROJECTORS.items():
        header = made()
        file = folder / f"{name}.mmproj.gguf"
        write(header, file)
        flags = ["--mmproj", str(file), "--fit", "on", "--log-verbosity", "4", "--ctx-size", "512", "--port", "0"]
        done = subprocess.run(
            [str(server), "--model", str(text), *flags], capture_output=True, text=True, errors="replace", check=False
        )
        said = done.stdout + done.stderr
        (told,) = re.findall(r"worst-case memory usage of mmproj is ([\d.]+) MiB", said)
        # the last one, with or without flash attention, is the one that is used
        side = int(re.findall(r"warmup with image size = (\d+)", said)[0])
        found = projector_of(header)
        # an audio encoder is loaded besides, and not told
        weights = sum(tensor.size_bytes for tensor in header.tensors if not tensor.name.startswith("a."))
        ours = weights + found.compute_bytes(found.tokens(side, side))
        rows[name] = {
            "told_bytes": float(told) * MIB,
            "off_percent": round(100 * (ours / (float(told) * MIB) - 1), 2),
            "largest_bytes": found.device_bytes,
        }
        largest = f"planned for the largest picture: {rows[name]['largest_bytes'] / MIB:,.0f} MiB"
        print(f"{name:26} {told:>8} MiB reserved, off by {rows[name]['off_percent']:+.2f} %   {largest}", flush=True)
        file.unlink()
    return rows


def find(name: str, folder: Path | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = [folder] if folder else [*cache.glob("cclocal-dev/llama-server-*/build/bin")]
    for place in places:
        if place and (place / name).is_file():
            return place / name
    found = shutil.which(name)
    if not found:
        sys.exit(f"{name} was not found: --llama-cpp FOLDER")
    return Path(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="two contexts, one slot; under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    dry, real = find("llama-fit-params", options.llama_cpp), find("llama-server", options.llama_cpp)
    shelf = load_catalog()
    blind = [model.name for model in shelf.models.values() if not model.shape and not model.variants[0].builtin]
    print(f"not measured, because their dimensions are not known: {', '.join(blind) or 'none of the catalog'}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = compare_caches(dry, folder, quick=options.quick)
        compute = compare_compute(real, folder, quick=options.quick)
        told = {
            "caches": caches,
            "compute": compute,
            "rules": compare_rules(caches, compute),
            "projectors": compare_projectors(real, folder),
            "filled": filled(real, folder),
        }
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    equal = sum(row["equal"] for row in caches.values())
    total = sum(row["cases"] for row in caches.values())
    print(f"KV cache and state equal in {equal} of {total} cases")
    sys.exit(equal != total)


if __name__ == "__main__":
    main()
