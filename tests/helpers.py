"""Small configs and programs that several tests share."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_pjit.commandline import run_command
from gpt_pjit.config import Config, from_config_dict, replaced as with_fields
from gpt_pjit.core.checkpoints import Checkpointer
from gpt_pjit.core.runtime import open_workdir, record_start
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.core.training import Training, build_training

ROOT = Path(__file__).parent.parent


def free_address() -> str:
    """HOST:PORT on loopback, where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def write_texts(folder: Path, files: int, lines: int) -> Path:
    """A corpus in `folder`: so many files of so many lines, no two alike."""
    for number in range(files):
        text = "".join(f"line {i} of file {number}: {i * number}\n" for i in range(lines))
        (folder / f"{number}.txt").write_text(text)
    return folder


def without_reader(command: Sequence[str], **options: Any) -> tuple[int, str]:
    """Exit code and standard error of a process whose standard output nobody reads."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
    return process.returncode, errors


def run_command_here(capsys: Any, command: str, *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `gpt_pjit COMMAND ARGV`, in this process."""
    module, words = f"gpt_pjit.{command}.command", [*map(str, argv)]
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


def load_config(name: str) -> Config:
    """The config of `configs/NAME.py`; 580m.py is no importable name, so it is loaded by path."""
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config(), str(path))


def program_on(config: Config, shape: tuple[int, int, int]) -> Training:
    return build_training(config, make_mesh(shape, jax.devices()[: int(np.prod(shape))]))


def random_tokens(config: Config, seed: int) -> np.ndarray:
    shape = (config.data.batch_size, config.data.sequence_length + 1)
    return np.random.default_rng(seed).integers(0, config.model.vocab_size, shape, np.int32)


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
