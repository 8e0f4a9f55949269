"""Cycles of attention kernels, from the compiler's static profile: what `jax_simcas.benchmark.attention` runs."""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common.errors import prefixed
from jax_simcas.common.tables import markdown_table
from jax_simcas.compile_check import cost, topology

PROFILE = re.compile(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)')
BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


class AttentionShape(NamedTuple):
    """Attention within the chunks of one document; `width` is that of one head."""

    chunks: int
    heads: int
    length: int
    width: int


def our_attention(shape: AttentionShape) -> Callable[..., Any]:
    """The encoder's own attention, which XLA fuses."""
    import jax

    from jax_simcas.backbones.ops.attention import attention

    return jax.vmap(lambda q, k, v, mask: attention(q, k, v, mask[None] == 1, True))


def flash_attention(shape: AttentionShape) -> Callable[..., Any]:
    """jax's flash attention kernel, with blocks as long as a chunk."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    names = flash.BlockSizes.__dataclass_fields__
    blocks = flash.BlockSizes(**{name: 1 if name == "block_b" else shape.length for name in names})
    return lambda q, k, v, mask: flash.flash_attention(
        q, k, v, segment_ids=flash.SegmentIds(mask, mask), sm_scale=shape.width**-0.5, block_sizes=blocks
    )


def splash_attention(shape: AttentionShape) -> Callable[..., Any]:
    """jax's splash attention kernel with the fused backward pass, with blocks as long as a chunk."""
    import jax
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks = splash.BlockSizes(use_fused_bwd_kernel=True, **dict.fromkeys(names, shape.length))  # type: ignore[arg-type]
    full = splash_attention_mask.FullMask((shape.length, shape.length))
    kernel = splash.make_splash_mha(
        splash_attention_mask.MultiHeadMask([full] * shape.heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
    )
    scale = shape.width**-0.5
    return jax.vmap(lambda q, k, v, mask: kernel(q * scale, k, v, segment_ids=splash.SegmentIds(mask, mask)))


# Each gives (query, key, value [K, H, S, D], mask [K, S]) -> context [K, H, S, D].
KINDS = {"ours": our_attention, "flash": flash_attention, "splash": splash_attention}


def analyze_attention(kind: str, shape: AttentionShape, where: str, backward: bool) -> cost.Analysis:
    """The compiled program, analysed; bfloat16."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    topology.prepare_environment()
    with prefixed("--topology="):
        place = SingleDeviceSharding(topology.describe(where).devices[0])
    attend = KINDS[kind](shape)

    def run(query: Any, key: Any, value: Any, mask: Any, cotangent: Any) -> Any:
        if not backward:
            return attend(query, key, value, mask)
        context, pull = jax.vjp(lambda *inputs: attend(*inputs, mask), query, key, value)
        return context, pull(cotangent)

    states = jax.ShapeDtypeStruct(tuple(shape), jnp.bfloat16, sharding=place)
    mask = jax.ShapeDtypeStruct((shape.chunks, shape.length), jnp.int32, sharding=place)
    lowered = jax.jit(run).trace(states, states, states, mask, states).lower(lowering_platforms=("tpu",))
    return cost.analyze(lowered.compile().as_text())


def profiled(instructions: Sequence[cost.Scheduled], profile: Mapping[str, int]) -> int:
    """Cycles of all executions. The profile lists one of several identical instructions: they share its cycles."""
    kinds = {_kind(each): profile[each.name] for each in instructions if each.name in profile}
    cycles = (profile.get(each.name, kinds.get(_kind(each), each.cycles or 0)) for each in instructions)
    return sum(each.executions * one for each, one in zip(instructions, cycles, strict=True))


def _kind(instruction: cost.Scheduled) -> tuple[str, str, int | None]:
    """What identical instructions share."""
    return instruction.opcode, instruction.shape, instruction.cycles


def kernel_bundles(schedule: str) -> int:
    """Bundles of a kernel's body; 0 for any other schedule, such as that of the whole program."""
    found = BUNDLES.search(schedule)
    of_kernel = found is not None and re.search(
        r"^\s*\S+ scheduled bundles \(100\S* %.*tpu_custom_call", schedule, re.M
    )
    return int(found[1]) if found and of_kernel else 0


def cycles_of(kind: str, shape: AttentionShape, where: str, backward: bool) -> int:
    """Cycles. Call it in a process of its own, since libtpu reads its flags once."""
    with tempfile.TemporaryDirectory() as folder:
        only_kernels = backward and kind != "ours"
        schedules = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
        profiles = f"--xla_jf_dump_static_llo_profile_to={folder}"
        os.environ["LIBTPU_INIT_ARGS"] = schedules if only_kernels else profiles
        analysis = analyze_attention(kind, shape, where, backward)
        files = [path.read_text(errors="replace") for path in Path(folder).rglob("*") if path.is_file()]
    if only_kernels:
        # One grid step per chunk and head, since a block is as long as a chunk.
        return sum(map(kernel_bundles, files)) * shape.chunks * shape.heads
    profile = {name: int(cycles) for text in files for name, cycles in PROFILE.findall(text)}
    return profiled(analysis.instructions, profile)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    with prefixed("--topology="):
        topology.parse_topology(arguments.topology)
    shape = AttentionShape(arguments.chunks, arguments.heads, arguments.length, arguments.width)
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for kind in KINDS:
        cycles = []
        for backward in (False, True):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                cycles.append(pool.submit(cycles_of, kind, shape, arguments.topology, backward).result() / 1e6)
        bound = "" if kind == "ours" else "≥ "
        rows.append({"attention": kind, "forward": f"{cycles[0]:.2f}", "and backward": f"{bound}{cycles[1]:.2f}"})
    print(markdown_table(rows, list(rows[0])))
    return 0
