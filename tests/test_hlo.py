"""Reading compiled modules and adding up their costs, on small modules written by hand."""

import pytest

from jax_simcas.compile_check import cost, hlo

ESTIMATE = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'

MODULE = f"""HloModule step, is_scheduled=true

FileNames
1 "/venv/lib/site-packages/flax/linear.py"
2 "/home/me/model.py"

FunctionNames
1 "Dense.__call__"
2 "layer"

FileLocations
1 {{file_name_id=2 function_name_id=2 line=7 end_line=7 column=1 end_column=2}}
2 {{file_name_id=1 function_name_id=1 line=99 end_line=99 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}

%fused (p: f32[8,128]) -> f32[8,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  ROOT %tanh = f32[8,128]{{1,0:T(8,128)}} tanh(%p)
}}

%inner_body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %s = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  %x = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%s), index=1
  %y = f32[8,128]{{1,0:T(8,128)}} fusion(%x), kind=kLoop, calls=%fused, metadata={{op_name="jit(step)/jvp(layer)/tanh" stack_frame_id=2}}, {ESTIMATE % 10}
  ROOT %t = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) tuple(%i, %y)
}}

%inner_condition (s: (s32[], f32[8,128])) -> pred[] {{
  %s = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  %n = s32[]{{:T(128)}} constant(5)
  ROOT %less = pred[]{{:T(512)}} compare(%i, %n), direction=LT
}}

%outer_body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %s = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %two = s32[]{{:T(128)}} constant(2)
  %from = s32[]{{:T(128)}} copy(%two)
  %x = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%s), index=1
  %in = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) tuple(%from, %x)
  %exp = f32[8,128]{{1,0:T(8,128)}} exponential(%x), metadata={{op_name="jit(step)/exp"}}, {ESTIMATE % 100}
  ROOT %inner = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) while(%in), condition=%inner_condition, body=%inner_body
}}

%outer_condition (s: (s32[], f32[8,128])) -> pred[] {{
  %s = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  ROOT %go = pred[]{{:T(512)}} custom-call(%s), custom_call_target="Unknown"
}}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {{
  %a = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %zero = s32[]{{:T(128)}} constant(0)
  %start = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) tuple(%zero, %a)
  %outer = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)}}) while(%start), condition=%outer_condition, body=%outer_body, backend_config={{"known_trip_count":{{"n":"4"}}}}
  %x = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%outer), index=1
  %sorted = f32[8,128]{{1,0:T(8,128)}} sort(%x), dimensions={{1}}, to_apply=%fused, {ESTIMATE % hlo.SENTINEL}
  %flash = f32[8,128]{{1,0:T(8,128)}} custom-call(%sorted), custom_call_target="tpu_custom_call", metadata={{op_name="jit(step)/flash"}}
  ROOT %last = bf16[3,200]{{1,0:T(8,128)(2,1)}} convert(%flash), metadata={{op_name="jit(step)/transpose(jvp(layer))/convert"}}, {ESTIMATE % 1000}
}}
"""  # noqa: E501  (lines as the compiler writes them)


def test_cycles_count_as_often_as_their_loops_run():
    analysis = cost.analyze(MODULE)
    assert analysis.cycles == 4 * (100 + 3 * 10) + 1000
    assert {(loop.name, loop.trips) for loop in analysis.loops} == {("outer", 4), ("inner", 3)}
    assert {each.name: each.executions for each in analysis.instructions if each.cycles} == {
        "exp": 4,
        "y": 12,
        "last": 1,
    }
    assert [each.name for each in analysis.slowest(2)] == ["last", "exp"]


def test_shares_name_the_place_in_the_program_and_the_phase():
    places = {(place.source, place.phase): place.cycles for place in cost.analyze(MODULE).places()}
    assert places == {
        ("layer (model.py:7)", "forward"): 120,  # not the installed library's frame inside it
        ("jit(step)/exp", ""): 400,
        ("jit(step)/transpose(jvp(layer))/convert", "backward"): 1000,
    }
    assert cost.phase("jit(step)/transpose(jvp())/rematted_computation/dot") == "recomputed"


def test_shares_of_the_parts_of_the_method():
    assert cost.analyze(MODULE.replace("layer)", "encode)")).scopes() == {"encode": 1000 + 120, "": 400}
    assert cost.scope("jit(step)/vmap(transpose(jvp(decode)))/while/body/select/dot_general") == "decode"
    assert cost.scope("jit(step)/jit(selected)/select") == cost.scope("") == ""  # the last is the operation's own name


def test_what_has_no_estimate_is_listed():
    analysis = cost.analyze(MODULE)
    assert analysis.kernels == (("jit(step)/flash", 1),)
    assert analysis.missing == (("sort", 1),)  # the sentinel is no estimate


def test_bytes_with_and_without_the_tiles_padding():
    assert hlo.shape_bytes("bf16[3,200]{1,0:T(8,128)(2,1)}") == 3 * 200 * 2
    assert hlo.shape_bytes("bf16[3,200]{1,0:T(8,128)(2,1)}", padded=True) == 8 * 256 * 2
    assert hlo.shape_bytes("bf16[3,200]{0,1:T(8,128)}", padded=True) == 200 * 128 * 2  # 3 is the minor axis
    assert hlo.shape_bytes("(f32[8]{0:T(1024)}, pred[4,2], s4[6], u32[])") == 32 + 8 + 3 + 4
    assert [each.bytes for each in cost.analyze(MODULE).instructions if each.name == "last"] == [8 * 256 * 2]


LOOP = """HloModule step

%body (s: (s32[], s32[], pred[4])) -> (s32[], s32[], pred[4]) {{
  %s = (s32[], s32[], pred[4]) parameter(0)
  ROOT %r = (s32[], s32[], pred[4]) tuple(%s)
}}

%both (c: s32[], n: s32[], any: pred[]) -> pred[] {{
  %c = s32[] parameter(0)
  %n = s32[] parameter(1)
  %any = pred[] parameter(2)
  %less = pred[] compare(%c, %n), direction={direction}
  ROOT %and = pred[] and(%less, %any)
}}

%condition (s: (s32[], s32[], pred[4])) -> pred[] {{
  %s = (s32[], s32[], pred[4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %carried = s32[] get-tuple-element(%s), index=1
  %flags = pred[4] get-tuple-element(%s), index=2
  %bound = s32[] constant(9)
  %any = pred[] bitcast(%flags)
  ROOT %go = pred[] fusion(%i, {bound}, %any), kind=kLoop, calls=%both
}}

ENTRY %main (a: pred[4]) -> pred[4] {{
  %a = pred[4] parameter(0)
  %one = s32[] constant({start})
  %limit = s32[] constant(7)
  %t = (s32[], s32[], pred[4]) tuple(%one, %limit, %a)
  ROOT %w = (s32[], s32[], pred[4]) while(%t), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
    ("direction", "bound", "start", "trips"),
    [("LT", "%bound", 1, 8), ("LE", "%bound", 1, 9), ("LT", "%carried", 1, 6), ("LT", "%bound", 20, 0)],
)
def test_a_loop_that_may_end_earlier_counts_its_bound(direction, bound, start, trips):
    (loop,) = cost.analyze(LOOP.format(direction=direction, bound=bound, start=start)).loops
    assert (loop.trips, loop.at_most) == (trips, True)


def test_a_loop_that_the_text_does_not_bound_says_so():
    (loop,) = cost.analyze(LOOP.format(direction="NE", bound="%bound", start=1)).loops
    assert loop.trips is None


COLLECTIVES = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter (p: f32[64]) -> f32[16] {
  %p = f32[64] parameter(0)
  %reduced = f32[64] all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[16] dynamic-slice(%reduced, %zero), dynamic_slice_sizes={16}
}

%wrapped (p: bf16[10]) -> bf16[10] {
  %p = bf16[10] parameter(0)
  ROOT %sent = bf16[10] collective-permute(%p), channel_id=4, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (a: f32[16], b: f32[64], c: bf16[10]) -> f32[16] {
  %a = f32[16] parameter(0)
  %b = f32[64] parameter(1)
  %c = bf16[10] parameter(2)
  %begun = (f32[16], f32[64]) all-gather-start(%a), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/weights"}
  %gathered = f32[64] all-gather-done(%begun)
  %all = (f32[64], f32[16]) all-reduce(%b, %a), channel_id=2, replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}, to_apply=%add
  %again = (f32[64], f32[16]) all-reduce(%b, %a), channel_id=2, replica_groups=mesh['x'=4,'y'=2] {'y'}, to_apply=%add
  %going = ((bf16[10]), bf16[10], u32[]) async-start(%c), calls=%wrapped
  %gone = bf16[10] async-done(%going), calls=%wrapped
  %scattered = f32[16] fusion(%b), kind=kCustom, calls=%all-reduce-scatter
  ROOT %end = f32[16] add(%scattered, %a)
}
"""  # noqa: E501


def test_collectives_are_counted_once_with_their_bytes_and_groups():
    analysis = cost.analyze(COLLECTIVES)
    found = {c.kind: (c.executions, c.bytes, c.group) for c in analysis.collectives}
    assert len(analysis.collectives) == len(found) == 4
    assert found == {
        "all-gather": (1, 64 * 4, 4),
        "all-reduce": (1, (64 + 16) * 4, 2),
        "reduce-scatter": (1, 64 * 4, 4),
        "collective-permute": (1, 20, None),
    }
    assert cost.by_kind(analysis.collectives)["all-gather"] == (1, 256)


SPREAD = """HloModule step

%begins (p: f32[16]) -> f32[64] {
  %p = f32[16] parameter(0)
  ROOT %gathered = f32[64] all-gather(%p), channel_id=1, replica_groups={}, dimensions={0}
}

%goes_on (p: f32[16]) -> f32[64] {
  %p = f32[16] parameter(0)
  ROOT %gathered = f32[64] all-gather(%p), channel_id=1, replica_groups={}, dimensions={0}
}

%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = (s32[], f32[16]) parameter(0)
  %x = f32[16] get-tuple-element(%s), index=1
  %meanwhile = f32[64] fusion(%x), kind=kCustom, calls=%goes_on
  ROOT %t = (s32[], f32[16]) tuple(%x, %x)
}

%condition (s: (s32[], f32[16])) -> pred[] {
  %s = (s32[], f32[16]) parameter(0)
  ROOT %go = pred[] custom-call(%s), custom_call_target="Unknown"
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %a = f32[16] parameter(0)
  %begun = f32[64] fusion(%a), kind=kCustom, calls=%begins
  %in = (s32[], f32[16]) tuple(%a, %a)
  %loop = (s32[], f32[16]) while(%in), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"32"}}
  ROOT %end = f32[16] get-tuple-element(%loop), index=1
}
"""


def test_a_collective_that_goes_on_in_a_loop_runs_as_often_as_it_begins():
    (gather,) = cost.analyze(SPREAD).collectives
    assert (gather.kind, gather.executions, gather.bytes) == ("all-gather", 1, 64 * 4)


CONDITIONAL = f"""HloModule step

%cheap (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  ROOT %y = f32[8] negate(%x), {ESTIMATE % 1}
}}

%dear (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  ROOT %y = f32[8] sine(%x), {ESTIMATE % 50}
}}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {{
  %p = pred[] parameter(0)
  %x = f32[8] parameter(1)
  ROOT %c = f32[8] conditional(%p, %x, %x), true_computation=%cheap, false_computation=%dear
}}
"""


def test_of_a_conditional_the_dearer_branch_counts():
    assert cost.analyze(CONDITIONAL).cycles == 50


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse_module("nothing")
