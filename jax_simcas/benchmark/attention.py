"""What a TPU's compiler says of attention within chunks: ours, which XLA fuses, beside jax's two Pallas kernels.

One document's attention on one chip, in millions of cycles. The estimate that compile_check sums up does not look into
Pallas kernels. The compiler's last stage does: its static profile has the cycles of every scheduled instruction and
kernel. That profile leaves out waiting for memory, in favour of whatever reads and writes more. For the kernels'
backward passes it did not end in 90 s (libtpu 0.0.42), so they count as their schedule's bundles times their grid,
without the work between them: a lower bound. Needs libtpu's compiler, pip install 'jax_simcas[tpu]', and no TPU.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common import cli
from jax_simcas.common.tables import markdown_table
from jax_simcas.compile_check import hlo, topology

EXAMPLES = """\
  python -m jax_simcas.benchmark.attention
  python -m jax_simcas.benchmark.attention --heads 12 --chunks 64 --topology v6e:1x1
"""
KINDS = ("ours", "flash", "splash")
PROFILE = re.compile(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)')
BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


class Sizes(NamedTuple):
    """Of one document; `width` is a head's."""

    chunks: int
    heads: int
    length: int
    width: int


def attention_of(kind: str, sizes: Sizes) -> Callable[..., Any]:
    """(query, key, value [K, H, S, D], mask [K, S]) -> context [K, H, S, D]; a block is as long as a chunk."""
    import jax

    length, scale = sizes.length, sizes.width**-0.5
    if kind == "ours":
        from jax_simcas.backbones.bart.layers import attention

        return jax.vmap(lambda q, k, v, mask: attention(q, k, v, mask[None] == 1, True))
    if kind == "flash":
        from jax.experimental.pallas.ops.tpu import flash_attention as flash

        names = flash.BlockSizes.__dataclass_fields__
        blocks = flash.BlockSizes(**{name: 1 if name == "block_b" else length for name in names})
        return lambda q, k, v, mask: flash.flash_attention(
            q, k, v, segment_ids=flash.SegmentIds(mask, mask), sm_scale=scale, block_sizes=blocks
        )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    fused = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    fused_blocks = splash.BlockSizes(use_fused_bwd_kernel=True, **dict.fromkeys(fused, length))  # type: ignore[arg-type]
    everything = splash_attention_mask.FullMask((length, length))
    kernel = splash.make_splash_mha(
        splash_attention_mask.MultiHeadMask([everything] * sizes.heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=fused_blocks,
    )
    return jax.vmap(lambda q, k, v, mask: kernel(q * scale, k, v, segment_ids=splash.SegmentIds(mask, mask)))


def compiled(kind: str, sizes: Sizes, where: str, backward: bool) -> hlo.Report:
    """The program that the TPU's compiler makes of it; bfloat16."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    topology.prepare_environment()
    place = SingleDeviceSharding(topology.describe(where).devices[0])
    attend = attention_of(kind, sizes)

    def run(query: Any, key: Any, value: Any, mask: Any, cotangent: Any) -> Any:
        if not backward:
            return attend(query, key, value, mask)
        context, pull = jax.vjp(lambda *inputs: attend(*inputs, mask), query, key, value)
        return context, pull(cotangent)

    states = jax.ShapeDtypeStruct(tuple(sizes), jnp.bfloat16, sharding=place)
    mask = jax.ShapeDtypeStruct((sizes.chunks, sizes.length), jnp.int32, sharding=place)
    lowered = jax.jit(run).trace(states, states, states, mask, states).lower(lowering_platforms=("tpu",))
    return hlo.report(lowered.compile().as_text())


def profiled(steps: Iterable[hlo.Step], profile: Mapping[str, int]) -> int:
    """Cycles of all executions. Of instructions that are alike the profile has one: they share their estimate."""
    steps = list(steps)
    alike = {(step.opcode, step.shape, step.cycles): profile[step.name] for step in steps if step.name in profile}
    of = lambda step: profile.get(step.name, alike.get((step.opcode, step.shape, step.cycles), step.cycles or 0))
    return sum(step.executions * of(step) for step in steps)


def kernel_bundles(schedule: str) -> int:
    """Bundles of a kernel's body; 0 for the schedule of anything else, the whole program's included."""
    found = BUNDLES.search(schedule)
    of_kernel = found is not None and re.search(
        r"^\s*\S+ scheduled bundles \(100\S* %.*tpu_custom_call", schedule, re.M
    )
    return int(found[1]) if found and of_kernel else 0


def measure(kind: str, sizes: Sizes, where: str, backward: bool) -> int:
    """Cycles; in a process of its own, since libtpu reads its flags once."""
    with tempfile.TemporaryDirectory() as folder:
        kernels_alone = backward and kind != "ours"
        schedules = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
        asked = schedules if kernels_alone else f"--xla_jf_dump_static_llo_profile_to={folder}"
        os.environ["LIBTPU_INIT_ARGS"] = asked
        report = compiled(kind, sizes, where, backward)
        files = [path.read_text(errors="replace") for path in Path(folder).rglob("*") if path.is_file()]
    if kernels_alone:
        # One step of the grid is a chunk's head: a block is as long as a chunk.
        return sum(map(kernel_bundles, files)) * sizes.chunks * sizes.heads
    profile = {name: int(cycles) for text in files for name, cycles in PROFILE.findall(text)}
    return profiled(report.steps, profile)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    topology.parse(arguments.topology)
    sizes = Sizes(arguments.chunks, arguments.heads, arguments.length, arguments.width)
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for kind in KINDS:
        cycles = []
        for backward in (False, True):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                cycles.append(pool.submit(measure, kind, sizes, arguments.topology, backward).result() / 1e6)
        bound = "" if kind == "ours" else "≥ "
        rows.append({"attention": kind, "forward": f"{cycles[0]:.2f}", "and backward": f"{bound}{cycles[1]:.2f}"})
    print(markdown_table(rows, list(rows[0])))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("benchmark.attention", __doc__ or "", EXAMPLES)
    parser.add_argument("--topology", default="v5e:2x2", help="whose first chip it is (default v5e:2x2)")
    for name, default, what in (
        ("chunks", 32, "of the document"),
        ("heads", 16, "of BART-large; base has 12"),
        ("length", 512, "tokens of a chunk"),
        ("width", 64, "of a head"),
    ):
        parser.add_argument(f"--{name}", type=cli.positive, default=default, help=f"{what} (default {default})")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
