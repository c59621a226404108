from gpt_pjit.partition import diff, explain_config
from tests.helpers import load_config, with_fields

GIB = 2**30


def on_32(**fields):
    config = with_fields(load_config("580m"), {k.replace("__", "."): v for k, v in fields.items()})
    return explain_config(config, 32)


def test_what_zero_saves_over_zero1():
    """2.1 GiB a core; it gathers bfloat16 weights where zero1 gathers float32 parameters."""
    difference = diff(on_32(partition__layout="zero1"), on_32())
    assert {move.trees for move in difference.moves} == {("stored",)}
    assert len(difference.moves) == 5
    before, after = difference.before, difference.after
    matrices = 586_874_880
    assert before.tree_bytes("stored") - after.tree_bytes("stored") == matrices * 4 * 31 // 32
    assert round(matrices * 4 * 31 / 32 / GIB, 2) == 2.12
    assert after.moved_bytes("gather weights, once") == matrices * 2 * 31 // 32
    assert before.moved_bytes("gather weights, once") == 0
    assert before.moved_bytes("gather updated parameters") == matrices * 4 * 31 // 32
    assert after.moved_bytes("gather updated parameters") == 0


def test_fsdp_gathers_each_layer_in_both_passes_of_each_microbatch():
    four = {"optim__microbatches": 4}
    difference = diff(on_32(**four), on_32(partition__layout="fsdp", **four))
    assert {move.trees for move in difference.moves} == {("compute",)}
    layers = 509_607_936  # elements in the matrices of the blocks; 4 microbatches
    moved = difference.after.moved_bytes
    assert moved("gather weights, layer by layer") == 2 * 4 * layers * 2 * 31 // 32
    assert moved("reduce gradients, layer by layer") == 4 * layers * 2 * 31 // 32


def test_a_new_mesh_moves_what_is_split_over_it():
    difference = diff(on_32(), on_32(mesh__tensor=2))
    assert [move.path for move in difference.moves] == [
        "blocks/attention/out/kernel",
        "blocks/attention/qkv/kernel",
        "blocks/mlp/down/kernel",
        "blocks/mlp/up/kernel",
        "embed/embedding",
    ]


def test_parameters_of_one_side_only():
    difference = diff(on_32(), on_32(model__positions="learned"))
    (move,) = difference.moves
    assert (move.path, move.before, len(move.trees)) == ("positions/embedding", None, 4)
    assert diff(on_32(), on_32()).moves == ()
