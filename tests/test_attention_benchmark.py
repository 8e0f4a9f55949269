"""What the program for attention on TPUs reads from the compiler's files."""

from jax_simcas.benchmark.attention import kernel_bundles, profiled
from jax_simcas.compile_check import hlo

KERNEL = """Schedule analysis:
\ttotal scheduled bundles:    1478
\tempty scheduled bundles:    8
\t1470.00 scheduled bundles (100.00%): %flash.1 = f32[2] custom-call(%a), custom_call_target="tpu_custom_call"
"""


def step(name, executions, cycles, opcode="fusion", shape="f32[2]"):
    return hlo.Step(name, opcode, shape, executions, cycles, bytes=8, source="", phase="", op_name="")


def test_bundles_are_those_of_kernels_alone():
    assert kernel_bundles(KERNEL) == 1478
    assert kernel_bundles(KERNEL.replace("(100.00%)", "( 0.70%)")) == 0  # the whole program, which calls it
    assert kernel_bundles(KERNEL.replace("tpu_custom_call", "other")) == 0
    assert kernel_bundles("") == 0


def test_instructions_without_a_profile_of_their_own_have_that_of_one_alike():
    steps = [step("a", 8, 50), step("a.clone", 2, 50), step("b", 1, 70), step("c", 1, None)]
    assert profiled(steps, {"a": 10}) == 8 * 10 + 2 * 10 + 70
    assert profiled([step("a", 1, 50), step("x", 1, 50, shape="f32[3]")], {"a": 10}) == 10 + 50
