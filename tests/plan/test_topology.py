"""Names of accelerators: what consoles count, and messages for what they do not have."""

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.plan.compile import FAMILIES, find_topology, larger


@pytest.mark.parametrize(
    ("name", "devices", "chips", "grid"),
    [
        ("v2-8", 8, 4, "v2:2x2"),
        ("v3-32", 32, 16, "v3:4x4"),
        ("v3-1024", 1024, 512, "v3:16x32"),
        ("v4-8", 4, 4, "v4:2x2x1"),
        ("v4-64", 32, 32, "v4:2x4x4"),
        ("v5e-1", 1, 1, "v5e:1x1"),
        ("v5litepod-32", 32, 32, "v5e:4x8"),
        ("v5p-16", 8, 8, "v5p:2x2x2"),
        ("V6E-256", 256, 256, "v6e:16x16"),
        ("h100-24", 24, 24, None),
    ],
)
def test_names_of_consoles(name, devices, chips, grid):
    topology = find_topology(name)
    assert (topology.devices, topology.chips, topology.grid) == (devices, chips, grid)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v3-33", "v3 comes in 8, 16, 32"),
        ("v5e-2", "v5e comes in 1, 4, 8"),
        ("v3x32", "did you mean v3-32"),
        ("v5e32", "did you mean v5e-32"),
        ("laptop", "known: v2-8 to -512, v3-8 to -2048"),
        ("h100-0", "any number of a100-40gb, a100, h100, h200"),
        ("", "known: v2-8"),
    ],
)
def test_an_unknown_name_lists_what_is_known(name, says):
    with pytest.raises(ConfigError, match=r"1 problem") as raised:
        find_topology(name)
    assert says in str(raised.value)


def test_every_size_has_a_grid_of_its_chips():
    for name, family in FAMILIES.items():
        for size in family.sizes:
            topology = find_topology(f"{name}-{size}")
            product = 1
            for part in topology.grid.split(":")[1].split("x"):
                product *= int(part)
            assert product == topology.chips == size // family.cores_per_chip


def test_larger_ones_of_the_same_chip():
    assert [t.name for t in larger(find_topology("v3-512"))] == ["v3-1024", "v3-2048"]
    assert larger(find_topology("h100-8"))[0].name == "h100-16"
