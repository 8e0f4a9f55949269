"""What the benchmark of attention on TPUs reads from the compiler's files."""

from jax_simcas.benchmark.attention_cycles import kernel_bundles, profiled
from jax_simcas.compile_check import cost

KERNEL = """Schedule analysis:
\ttotal scheduled bundles:    1478
\tempty scheduled bundles:    8
\t1470.00 scheduled bundles (100.00%): %flash.1 = f32[2] custom-call(%a), custom_call_target="tpu_custom_call"
"""


def instruction(name, executions, cycles, opcode="fusion", shape="f32[2]"):
    return cost.Scheduled(name, opcode, shape, executions, cycles, bytes=8, source="", phase="", op_name="")


def test_only_kernels_bundles_count():
    assert kernel_bundles(KERNEL) == 1478
    assert kernel_bundles(KERNEL.replace("(100.00%)", "( 0.70%)")) == 0  # the whole program, which calls it
    assert kernel_bundles(KERNEL.replace("tpu_custom_call", "other")) == 0
    assert kernel_bundles("") == 0


def test_identical_instructions_share_one_profile():
    several = [
        instruction("a", 8, 50),
        instruction("a.clone", 2, 50),
        instruction("b", 1, 70),
        instruction("c", 1, None),
    ]
    assert profiled(several, {"a": 10}) == 8 * 10 + 2 * 10 + 70
    assert profiled([instruction("a", 1, 50), instruction("x", 1, 50, shape="f32[3]")], {"a": 10}) == 10 + 50
