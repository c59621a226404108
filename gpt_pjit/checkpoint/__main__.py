"""Look at a run's checkpoints, average them, or grow a deeper model from one.

python -m gpt_pjit.checkpoint list DIR
python -m gpt_pjit.checkpoint average DIR [--last=4] [--fraction=0.2] [--steps=700,800] [--out=NEW]
python -m gpt_pjit.checkpoint grow DIR --layers=N [--out=NEW]

DIR is a workdir; for `grow` it may be one step, WORKDIR/checkpoints/STEP. `average` and `grow` make
a workdir, by default DIR/averaged and DIR/grown,
and report validation loss, before and after, unless --noloss is given. All take --json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from gpt_pjit.checkpoint import read_arrays, saved_steps, write_state
from gpt_pjit.checkpoint.average import mean_params, steps_to_average
from gpt_pjit.checkpoint.grow import grown_config, grown_params, layer_sources
from gpt_pjit.checkpoint.listing import list_checkpoints
from gpt_pjit.cli import parse_command, report_errors, required
from gpt_pjit.config import MeshConfig
from gpt_pjit.data import open_data
from gpt_pjit.errors import ConfigError
from gpt_pjit.model import param_shapes
from gpt_pjit.partition import make_mesh
from gpt_pjit.runtime import derived_workdir, no_data_yet, read_run
from gpt_pjit.trained import find_checkpoint, held_out_metrics, run_tokenizer, start_devices
from gpt_pjit.training import build

_LAST = flags.DEFINE_integer("last", 4, "average: how many checkpoints.", lower_bound=1)
_FRACTION = flags.DEFINE_float(
    "fraction", 0.2, "average: of the steps, from whose end they come.", 0.0, 1.0
)
_STEPS = flags.DEFINE_list("steps", None, "average: these steps, and not --last of them.")
_LAYERS = flags.DEFINE_integer("layers", None, "grow: how many layers to have.")
_LOSS = flags.DEFINE_bool("loss", True, "Measure validation loss, before and after.")
_OUT = flags.DEFINE_string("out", None, "The workdir to make.")
_JSON = flags.DEFINE_bool("json", False, "JSON instead of words.")

# What a command gives back: a value for --json, and what to show without.
Answer = tuple[Any, Any]


def list_command(path: Path) -> Answer:
    _, run = read_run(path)
    listed = list_checkpoints(path / "checkpoints")
    source = run.get("source")
    record = {"source": source, "checkpoints": [dataclasses.asdict(c) for c in listed]}
    table = Table(title=f"Checkpoints of {path}", title_justify="left")
    for name in ("step", "date", "MB", "complete"):
        table.add_column(name, justify="right")
    for c in listed:
        table.add_row(f"{c.step:,}", c.date, f"{c.size / 1e6:,.1f}", "yes" if c.complete else "NO")
    if source:
        made = "\n".join(f"{k}: {v}" for k, v in source.items() if k != "made" and v is not None)
        table.caption, table.caption_justify = f"not from training\n{made}", "left"
    return record, table


def average_command(path: Path) -> Answer:
    config, run = read_run(path)
    steps = _steps_of(path)
    directory = path / "checkpoints"
    # One device and one microbatch: the state's shapes are those of any mesh.
    optim = dataclasses.replace(config.optim, microbatches=1)
    alone = dataclasses.replace(config, optim=optim, mesh=MeshConfig())
    state = build(alone, make_mesh((1, 1, 1), jax.devices()[:1])).state
    tokenizer = run_tokenizer(path, run)
    out = Path(_OUT.value) if _OUT.value else path / "averaged"
    source = {"kind": "average", "from": str(path), "steps": steps}
    with derived_workdir(
        out,
        config,
        source=source,
        data=run["data"],
        tokenizer=(tokenizer.file, tokenizer.content),
        starts=run["starts"],
    ) as draft:
        params = mean_params(directory, steps, state.params)
        rest = {"step": state.step, "opt_state": state.opt_state}
        # The newest one's moments and step: the run can go on from here.
        rest = read_arrays(directory, steps[-1], rest)
        write_state(draft / "checkpoints", steps[-1], state._replace(params=params, **rest))
    losses, words = _losses(path, steps[-1], out)
    shown = f"{out}: the mean of steps {', '.join(map(str, steps))} of {path}\n{words}"
    return {"workdir": str(out), **source, "validation_loss": losses}, shown


def grow_command(path: Path) -> Answer:
    workdir, step = find_checkpoint(path)
    config, run = read_run(workdir)
    sources = layer_sources(config.model.n_layers, required(_LAYERS))
    shapes = param_shapes(config.model, config.data.sequence_length)
    tokenizer = run_tokenizer(workdir, run)
    out = Path(_OUT.value) if _OUT.value else workdir / "grown"
    source = {"kind": "grow", "from": str(workdir), "step": step, "layers": sources}
    with derived_workdir(
        out,
        grown_config(config, sources),
        source=source,
        data=no_data_yet(str(workdir), tokenizer.sha256, tokenizer.vocab_size),
        tokenizer=(tokenizer.file, tokenizer.content),
        starts=[],
    ) as draft:
        params = grown_params(workdir / "checkpoints", step, shapes, sources)
        write_state(draft / "checkpoints", 0, {"step": np.int32(0), "params": params})
    losses, words = _losses(workdir, step, out)
    shown = f"{out}: {len(sources)} layers, from layers {sources} of step {step}\n{words}"
    return {"workdir": str(out), **source, "validation_loss": losses}, shown


def _losses(workdir: Path, step: int, out: Path) -> tuple[dict[str, float] | None, str]:
    """Validation loss of `step` and of `out`, on the run's own data, where they are."""
    if not _LOSS.value:
        return None, "validation loss not measured"
    config, _ = read_run(workdir)
    try:
        data = open_data(config.data, workdir / "data", config.model.vocab_size)
    except ConfigError as error:
        return None, f"validation loss not measured, the run's data are not here: {error}"
    pair = {"before": workdir / "checkpoints" / str(step), "after": out}
    losses = {name: held_out_metrics(at, data)["validation/loss"] for name, at in pair.items()}
    before, after = losses.values()
    return losses, f"validation loss {before:.4f} at step {step}, {after:.4f} now"


def _steps_of(path: Path) -> list[int]:
    saved = saved_steps(path / "checkpoints")
    if not saved:
        find_checkpoint(path)  # raises, and says why
    if _STEPS.value is None:
        return steps_to_average(saved, _LAST.value, _FRACTION.value)
    wrong = [step for step in _STEPS.value if not step.isdigit() or int(step) not in saved]
    if wrong:
        has = ", ".join(map(str, saved))
        raise ConfigError([f"{path} has no step {', '.join(wrong)}; it has {has}"], "--steps")
    return sorted(set(map(int, _STEPS.value)))


COMMANDS = {"list": list_command, "average": average_command, "grow": grow_command}


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    with report_errors():
        if len(argv) < 3:
            raise ConfigError([f"which run? python -m gpt_pjit.checkpoint {argv[1]} DIR"], argv[1])
        start_devices()
        record, shown = COMMANDS[argv[1]](Path(argv[2]))
    if _JSON.value:
        print(json.dumps(record, indent=2))
    else:
        Console(highlight=False).print(shown, markup=False, soft_wrap=True)


def _parse(argv: list[str]) -> list[str]:
    """The command and the folder, which come first, and flags."""
    words = [arg for arg in argv[1:3] if not arg.startswith("-")]
    folder, others = words[1:], [arg for arg in argv if arg not in words[1:]]
    return [*parse_command(others, COMMANDS), *folder]


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
