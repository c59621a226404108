"""A Llama that we trained: the same by every route out, and back in without a step in the loss."""

from dataclasses import replace

import numpy as np
import pytest

from gpt_pjit.core.runtime import read_run
from gpt_pjit.core.tokens import open_data, train_batches
from gpt_pjit.core.train import Tools, train
from gpt_pjit.data import prepare_text
from gpt_pjit.hf import export, import_model
from gpt_pjit.trained import held_out_metrics
from tests.helpers import BLOCKS, tiny
from tests.hf import routes
from tests.hf.ours import logits_of
from tests.processes import by_step

pytest.importorskip("torch", reason="needs the extra hf")
pytest.importorskip("ctranslate2", reason="wants ctranslate2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.hf,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config and workdir of a short run on text, and its export."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("".join(f"{i} squared is {i * i}\n" for i in range(3000)))
    model = BLOCKS["llama"] | {"vocab_size": 288, "rope_scaling": ()}
    data = {"text": str(folder / "text.txt"), "tokenizer": "bpe:288", "batch_size": 32}
    data |= {"validation_split": "tail"}
    optim = {"steps": STEPS, "warmup_steps": 4, "peak_lr": 3e-3}
    config = tiny(model=model, data=data, optim=optim, log={"every": 1})
    assert train(config, folder / "run", Tools(prepare_text, None)) == 0
    export(folder / "run", folder / "hf", dtype="float32")
    return config, folder / "run", folder / "hf"


def test_bits_per_byte_by_every_route(trained, tmp_path):
    config, run, folder = trained
    text = tmp_path / "held_out.txt"
    text.write_text("".join(f"{i} squared is {i * i}\n" for i in range(3000, 3100)))
    window = config.data.sequence_length
    ours = routes.ours(run, text)
    assert ours < 3  # it has learned: about 8 at first
    for logits in (
        routes.of_transformers(folder),
        routes.of_ctranslate2(folder, tmp_path / "converted"),
    ):
        assert routes.theirs(logits, folder, text, window) == pytest.approx(ours, abs=1e-5)


def test_imported_again_it_trains_on_without_a_step_in_the_loss(trained, tmp_path):
    config, run, folder = trained
    again = tmp_path / "again"
    import_model(str(folder), again)
    assert read_run(again)[0].model == replace(config.model, rope_scaling=())
    onward = replace(
        config,
        data=replace(config.data, text="", path=str(run / "data")),
        optim=replace(config.optim, peak_lr=3e-4),
        seed=1,  # another order
    )
    data = open_data(onward.data, run / "data", config.model.vocab_size)
    before, after = (held_out_metrics(at, data)["validation/loss"] for at in (run, again))
    assert after == pytest.approx(before, abs=1e-6)
    tokens = next(train_batches(data, onward, np.arange(32))).tokens
    logits = logits_of(run)(tokens[:, :-1])
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    expected = float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen))
    assert train(onward, again, Tools(prepare_text, None)) == 0
    losses = [*by_step(again).values()]
    assert losses[0] == pytest.approx(expected, abs=1e-5)
    assert max(losses) < 1.15 * expected
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
