"""Small configs and programs that several tests share."""

import runpy
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_pjit.commandline import run_command
from gpt_pjit.config import Config, ModelConfig, from_config_dict, replaced as with_fields
from gpt_pjit.core.checkpoints import Checkpointer
from gpt_pjit.core.model import rotation
from gpt_pjit.core.model.layers import Norm
from gpt_pjit.core.runtime import open_workdir, record_start
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.core.training import Training, build_training
from tests.processes import ROOT


def write_texts(folder: Path, files: int, lines: int) -> Path:
    """A corpus in `folder`: so many files of so many lines, no two alike."""
    for number in range(files):
        text = "".join(f"line {i} of file {number}: {i * number}\n" for i in range(lines))
        (folder / f"{number}.txt").write_text(text)
    return folder


def run_command_here(capsys: Any, command: str, *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `gpt_pjit COMMAND ARGV`, in this process."""
    module = "gpt_pjit.main" if command == "train" else f"gpt_pjit.{command}.command"
    words = [*map(str, argv)]
    with warnings.catch_warnings():
        # ml_collections loads configs in the way that Python 3.12 drops.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        with pytest.raises(SystemExit) as stop:
            run_command(module, f"gpt_pjit {command}", words)
    return stop.value.code, *capsys.readouterr()


def tiny(**sections: dict) -> Config:
    """Two layers, 64 wide, 32 tokens, batch 64; `tiny(model={"bias": "all"})` changes fields."""
    fields = {
        "model.n_layers": 2,
        "model.n_heads": 4,
        "model.d_model": 64,
        "model.d_ff": 128,
        "model.vocab_size": 512,
        "model.dtype": "float32",
        "data.text": "unused",
        "data.sequence_length": 32,
        "data.batch_size": 64,
    }
    for section, values in sections.items():
        fields |= {f"{section}.{name}": value for name, value in values.items()}
    return with_fields(Config(), fields)


# Blocks that together use each word of `model`, most of them beside different others.
BLOCKS: dict[str, dict[str, Any]] = {
    "alibi": {},
    "gpt2": {"positions": "learned", "bias": "all", "activation": "gelu_tanh"},
    "llama": {
        "positions": "rope",
        "rope_scaling": (8.0, 1.0, 4.0, 16),
        "norm": "rms",
        "activation": "swiglu",
        "n_kv_heads": 2,
        "tied": False,
    },
    "qwen": {
        "positions": "rope",
        "rope_theta": 100.0,
        "norm": "rms",
        "norm_epsilon": 1e-6,
        "activation": "swiglu",
        "n_kv_heads": 1,
        "head_size": 8,
        "qk_norm": True,
        "bias": "qkv",
        "remat": "selective",
    },
    "neox": {
        "positions": "rope",
        "rope_fraction": 0.5,
        "parallel_residual": True,
        "bias": "all",
        "qk_norm": True,
        "tied": False,
    },
    "nanochat": {
        "n_layers": 4,
        "positions": "rope",
        "windows": (8, 0),
        "norm": "rms",
        "norm_gain": False,
        "qk_norm": True,
        "activation": "relu2",
        "tied": False,
        "logit_softcap": 1.0,
        "attention_scale": 0.2,
        "logit_factor": 0.5,
        "residual_factor": 0.5,
        "init_rules": ((r".*/kernel", 2.0), (r".*", 1.0)),
    },
    "grouped": {"n_kv_heads": 2, "windows": (12,), "activation": "relu", "remat": "full"},
}


def load_config(name: str | Path) -> Config:
    """The config of a file, or of `configs/NAME.py`; 580m.py has no name to import it by."""
    path = name if isinstance(name, Path) else ROOT / "configs" / f"{name}.py"
    return from_config_dict(runpy.run_path(str(path))["get_config"](), str(path))


def norms_and_rotation(size: int, places_BT: jax.Array) -> Any:
    """For `Heads` of this size: RMS norms without gains, and the angles of these places."""
    c = ModelConfig(n_heads=1, d_model=size, positions="rope", norm="rms", norm_gain=False)
    norm = Norm(c, size, bias=False)
    return (norm, norm), rotation(c, places_BT)


def program_on(config: Config, shape: tuple[int, int, int]) -> Training:
    return build_training(config, make_mesh(shape, jax.devices()[: int(np.prod(shape))]))


def random_tokens(config: Config, seed: int) -> np.ndarray:
    shape = (config.data.batch_size, config.data.sequence_length + 1)
    return np.random.default_rng(seed).integers(0, config.model.vocab_size, shape, np.int32)


def timed_steps(program: Training, config: Config, steps: int) -> list[float]:
    """Seconds of each of `steps` training steps on the same random tokens."""
    seconds = []
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))
        tokens = jax.device_put(random_tokens(config, 0), program.tokens.sharding)
        for _ in range(steps):
            start = time.perf_counter()
            state, metrics = program.train_step(state, tokens)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
    return seconds


def begin(folder: Path, config: Config, tokenizer: str = "bytes") -> None:
    """A run that has come as far as its data, and no further."""
    open_workdir(folder, config)
    loaded = load_tokenizer(tokenizer)
    size = loaded.vocab_size
    identity = {"path": "none", "tokenizer": loaded.sha256, "vocab_size": size, "sha256": ""}
    record_start(folder, config, [identity], (loaded.file, loaded.content))


def make_workdir(
    folder: Path, config: Config, steps: Sequence[int] = (1,), tokenizer: str = "bytes"
) -> dict[int, Any]:
    """A finished run without its training: random parameters, saved at each of `steps`.

    With the tokenizer of bytes, `model.vocab_size` must be 257 or more. Returns the
    parameters of each step.
    """
    begin(folder, config, tokenizer)
    program = program_on(config, (1, 1, 1))
    checkpointer = Checkpointer(folder / "checkpoints", keep=None)
    params = {}
    with jax.set_mesh(program.mesh):
        for step in steps:
            state = program.init(jax.random.key(step))
            checkpointer.save(step, state._replace(step=jax.numpy.int32(step)))
            params[step] = jax.device_get(state.params)
    checkpointer.close()
    return params


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """(times run, equation) of a program and of the programs inside it."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    for equation in jaxpr.eqns:
        yield times, equation
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value), inner)


def run_steps(config: Config, program: Training, steps: int):
    """The state and the metrics of `steps` training steps on random tokens."""
    history = []
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(config.seed))
        for step in range(steps):
            tokens = jax.device_put(random_tokens(config, step), program.tokens.sharding)
            state, metrics = program.train_step(state, tokens)
            history.append({name: float(value) for name, value in metrics.items()})
    return state, history
