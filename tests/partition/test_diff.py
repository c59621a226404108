"""What changes between two placements of the 580M config on 32 devices, by the numbers."""

from gpt_pjit.pages import compare
from gpt_pjit.partition import explain_config
from tests.helpers import load_config, with_fields


def on_32(**fields):
    config = with_fields(load_config("580m"), {k.replace("__", "."): v for k, v in fields.items()})
    return explain_config(config, 32)


def moves(before, after):
    """(path, tree) of every part that lies elsewhere; no tree for a parameter that a side lacks."""
    changes = compare(before["parameters"], after["parameters"])
    paths = [change.path for change in changes if change.path[1:2] in ((), ("trees",))]
    return sorted({(path[0], *path[2:3]) for path in paths})


def test_what_zero_saves_over_zero1():
    """2.12 GiB a core; it gathers bfloat16 weights where zero1 gathers float32 parameters."""
    before, after = on_32(partition__layout="zero1"), on_32()
    assert {tree for _, tree in moves(before, after)} == {"stored"}
    assert len(moves(before, after)) == 5
    held_before, held_after = before["bytes_a_device"], after["bytes_a_device"]
    moved_before, moved_after = before["bytes_moved_a_step"], after["bytes_moved_a_step"]
    matrices = 586_874_880
    assert held_before["stored"] - held_after["stored"] == matrices * 4 * 31 // 32
    assert moved_after["gather weights, once"] == matrices * 2 * 31 // 32
    assert moved_before["gather weights, once"] == 0
    assert moved_before["gather updated parameters"] == matrices * 4 * 31 // 32
    assert moved_after["gather updated parameters"] == 0


def test_fsdp_gathers_each_layer_in_both_passes_of_each_microbatch():
    four = {"optim__microbatches": 4}
    before, after = on_32(**four), on_32(partition__layout="fsdp", **four)
    assert {tree for _, tree in moves(before, after)} == {"compute"}
    layers = 509_607_936  # elements in the matrices of the blocks; 4 microbatches
    moved = after["bytes_moved_a_step"]
    assert moved["gather weights, layer by layer"] == 2 * 4 * layers * 2 * 31 // 32
    assert moved["reduce gradients, layer by layer"] == 4 * layers * 2 * 31 // 32


def test_a_new_mesh_moves_what_is_split_over_it():
    assert sorted({path for path, _ in moves(on_32(), on_32(mesh__tensor=2))}) == [
        "blocks/attention/out/kernel",
        "blocks/attention/qkv/kernel",
        "blocks/mlp/down/kernel",
        "blocks/mlp/up/kernel",
        "embed/embedding",
    ]


def test_parameters_of_one_side_only():
    assert moves(on_32(), on_32(model__positions="learned")) == [("positions/embedding",)]
    assert compare(on_32(), on_32()) == []
