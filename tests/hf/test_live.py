"""Against transformers, lm-eval on top of it, and CTranslate2. Needs the extra `hf`."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.data import prepare_text, train_bpe, train_unigram
from gpt_pjit.hf import export, import_model
from tests.helpers import BLOCKS, tiny
from tests.hf import routes
from tests.hf.checkpoints import REFERENCE, SOME, some_tokens, write_checkpoint
from tests.hf.make_reference import logits_and_greedy
from tests.hf.ours import greedy, logits_of, write_run

torch = pytest.importorskip("torch", reason="needs the extra hf")
transformers = pytest.importorskip("transformers", reason="needs the extra hf")
pytestmark = [
    pytest.mark.hf,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TEXTS = ["def main(argv):\n\treturn  0\n", " Größe, 你好, \U0001f600", "   spaces   and 12345"]
SPELT = "1 < 2 > look: <unk> and <|endoftext|> are text"
TRAINED, TIMES = 32, 4
# CTranslate2 refuses a GPT-2 whose vocabulary is larger than its tokenizer.
LEARNED = {"positions": "learned", "d_ff": 200, "vocab_size": 257}
FACTORS = {"attention_scale": 0.1, "logit_factor": 0.7, "residual_factor": 0.3}
SHAPES = {
    "alibi-4": {"n_heads": 4},
    "alibi-6": {"n_heads": 6, "d_model": 96, "d_ff": 384},
    "alibi-12": {"n_heads": 12, "d_model": 96, "d_ff": 384},
    "learned": LEARNED | {"activation": "gelu_tanh", "bias": "all"},
    "learned-plain": LEARNED,
    "llama-scaled": BLOCKS["llama"],
    "llama": BLOCKS["llama"] | {"n_heads": 12, "n_kv_heads": 4, "d_model": 96, "rope_scaling": ()},
    "llama-tied": BLOCKS["llama"] | {"n_kv_heads": 0, "tied": True, "rope_scaling": ()},
    "qwen2": BLOCKS["llama"] | {"bias": "qkv", "n_kv_heads": 1, "tied": True, "rope_scaling": ()},
    "qwen3": BLOCKS["qwen"] | {"bias": "none", "n_heads": 6, "d_model": 96, "n_kv_heads": 2},
    "neox": BLOCKS["neox"] | {"qk_norm": False},
    "learned-factors": LEARNED | FACTORS,
    "llama-factors": BLOCKS["llama"] | FACTORS,
    "qwen3-factors": BLOCKS["qwen"] | FACTORS | {"bias": "none"},
}


@pytest.fixture(scope="module", params=SHAPES)
def exported(request, tmp_path_factory):
    """A run of our own, with random weights, and its export."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny(model={"d_ff": 256, "vocab_size": 264} | SHAPES[request.param])
    write_run(folder / "run", config)
    longest = TRAINED if config.model.positions == "learned" else TRAINED * TIMES
    done = export(folder / "run", folder / "hf", dtype="float32", max_length=longest)
    assert done["max_length"] == longest
    return folder / "run", folder / "hf", done["max_length"]


def load(folder, **settings):
    """The model, with no tensor missing, unknown or of another shape."""
    found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    model, report = found
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def continued(model, tokens, n_new):
    """Greedy ids after each row."""
    rows = torch.tensor(tokens, dtype=torch.int64)
    new = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
    )
    return new[:, tokens.shape[1] :].numpy()


def test_the_stored_reference_is_what_transformers_computes(theirs, name):
    logits, new = logits_and_greedy(theirs)
    with np.load(REFERENCE) as stored:
        assert np.abs(logits[:, SOME] - stored[f"{name}.logits"]).max() < 1e-5
        assert np.array_equal(new, stored[f"{name}.greedy"])


def test_logits_after_import(theirs, imported):
    logits, _ = logits_and_greedy(theirs)
    assert np.abs(logits_of(imported)(some_tokens()) - logits).max() < 1e-4


def test_logits_and_greedy_text_after_export(exported):
    run, folder, length = exported
    model, ours = load(folder), logits_of(run)
    tokens = np.random.default_rng(1).integers(0, 257, (2, length), np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    assert np.abs(ours(tokens) - theirs).max() < 1e-4
    n_new = length - 8
    new = greedy(ours, tokens[:, :8], n_new)
    assert np.array_equal(new, continued(model, tokens[:, :8], n_new))
    assert len(np.unique(new)) > 3


def test_bfloat16_loads_as_such(exported, tmp_path):
    run, _, _ = exported
    export(run, tmp_path / "bf16", dtype="bfloat16", shard_bytes=60_000)
    model = load(tmp_path / "bf16")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["bytes", "json", "model"])
def test_auto_tokenizer_gives_our_ids(kind, tmp_path):
    spec = kind
    if kind != "bytes":
        spec = str(tmp_path / f"tokenizer.{kind}")
        train = {"json": train_bpe, "model": train_unigram}[kind]
        corpus = [f"{text} number {i}" for text in (*TEXTS, SPELT) for i in range(60)]
        train(corpus, 330, tmp_path / spec)
    write_run(tmp_path / "run", tiny(model={"d_ff": 256}), tokenizer=spec)
    export(tmp_path / "run", tmp_path / "hf", dtype="float32")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_tokenizer(spec)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert theirs(SPELT, split_special_tokens=True)["input_ids"] == ours.encode(SPELT).tolist()
    assert theirs.eos_token_id == ours.eot_id
    assert theirs.model_max_length == TIMES * TRAINED


def test_prompts_in_a_batch_continue_as_they_do_alone(exported):
    """The tokenizer pads on the left, so that every row ends with its prompt's last token."""
    _, folder, length = exported
    model, tokenizer = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    settings = {"max_new_tokens": min(8, length - 20), "do_sample": False, "eos_token_id": None}
    prompts = ["a", "def main(argv):", "12345"]
    rows = tokenizer(prompts, return_tensors="pt", padding=True)
    together = model.generate(**rows, **settings)[:, rows["input_ids"].shape[1] :]
    for prompt, row in zip(prompts, together, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        alone = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
        assert alone.tolist() == row.tolist()


@pytest.mark.parametrize("shape", ["learned", "llama", "llama-tied", "qwen2", "qwen3"])
def test_ctranslate2_converts_and_continues_an_export(tmp_path, shape):
    """Its logits, and its greedy text with its own cache.

    Not with the scaling of Llama 3, which CTranslate2 4.8.5 computes otherwise than transformers.
    """
    pytest.importorskip("ctranslate2")
    run, folder, length = tmp_path / "run", tmp_path / "hf", TRAINED
    write_run(run, tiny(model={"vocab_size": 257} | SHAPES[shape]))
    export(run, folder, dtype="float32")
    runtime = routes.ctranslate2_runtime(folder, tmp_path / "ct2")
    tokens = np.random.default_rng(1).integers(0, 256, (1, length), np.int32)
    ours = logits_of(run)
    theirs = np.array(runtime.forward_batch(tokens.tolist()))
    assert np.abs(ours(tokens) - theirs).max() < 1e-4
    prompt, n_new = tokens[:, :8], length - 8
    new = routes.ctranslate2_greedy(runtime, folder, prompt[0], n_new)
    assert new == greedy(ours, prompt, n_new)[0].tolist()


def test_the_command_that_converts_a_pickle_works(tmp_path):
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    torch.save(load(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as raised:
        import_model(str(folder), tmp_path / "run")
    command = re.search(r"python -c \"(.*)\" and import NEW", str(raised.value))[1]
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, capture_output=True)
    import_model(str(tmp_path / "NEW"), tmp_path / "run")
    ours = logits_of(tmp_path / "run")(some_tokens())[:, SOME]
    with np.load(REFERENCE) as stored:
        assert np.abs(ours - stored["gpt2.logits"]).max() < 1e-4


def test_lm_eval_scores_each_request_alike_through_both(theirs, imported):
    """The same checkpoint through lm-eval's `hf` backend and through ours."""
    pytest.importorskip("lm_eval.models", reason="wants lm-eval")  # and registers `hf`
    assert routes.largest_difference_in_lm_eval(theirs, imported, TEXTS) < 1e-3


@pytest.mark.slow
def test_trained_averaged_exported_the_same_bits_per_byte(tmp_path, monkeypatch, capsys):
    """From text to a model in transformers, by the commands' own functions; then evaluated."""
    from gpt_pjit.commandline import run_command
    from gpt_pjit.core.runtime import read_run
    from gpt_pjit.core.tokens import held_out_batches, open_data
    from gpt_pjit.core.train import Tools, train
    from gpt_pjit.evaluate import read_results
    from gpt_pjit.evaluate.scorer import rolling_requests
    from gpt_pjit.trained import held_out_metrics

    def call(module, argv):
        with pytest.raises(SystemExit) as ended:
            run_command(module, "gpt_pjit", argv)
        assert not ended.value.code

    (tmp_path / "text.txt").write_text("".join(f"{i} squared is {i * i}\n" for i in range(3000)))
    model = ModelConfig(
        n_layers=2, n_heads=4, d_model=64, d_ff=256, vocab_size=288, dtype="float32"
    )
    data = {"text": str(tmp_path / "text.txt"), "validation_split": "tail", "batch_size": 32}
    config = tiny(data=data, optim={"steps": 40, "warmup_steps": 4, "peak_lr": 3e-3})
    config = replace(config, model=model)
    config = replace(config, checkpoint=replace(config.checkpoint, every=2, keep=20))
    run = tmp_path / "run"
    assert train(config, run, Tools(prepare_text, None)) == 0
    monkeypatch.setattr("gpt_pjit.checkpoint.command.start_devices", lambda: None)
    call("gpt_pjit.checkpoint.command", ["average", str(run), f"--out={tmp_path / 'averaged'}"])
    assert len(read_run(tmp_path / "averaged")[1]["source"]["steps"]) == 4
    opened = open_data(replace(config.data, text="", path=str(run / "data")), run / "data", 288)
    ours = held_out_metrics(tmp_path / "averaged", opened)["validation/bits_per_byte"]
    export(tmp_path / "averaged", tmp_path / "hf", dtype="float32")
    theirs, nats = load(tmp_path / "hf"), 0.0
    for batch in chain.from_iterable(held_out_batches(opened, config, np.arange(32)).values()):
        tokens = torch.tensor(batch.tokens, dtype=torch.int64)
        with torch.no_grad():
            logits = theirs(tokens[:, :-1]).logits.transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
        nats += float((each.double() * torch.tensor(batch.mask)).sum())
    # As training has it: of the predicted tokens, over the bytes of all.
    loss = nats / (opened.held_out_tokens - 1)
    bits = loss / np.log(2) * opened.held_out_tokens / opened.held_out_bytes
    assert bits == pytest.approx(ours, abs=1e-4)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_seq_len"] == 128

    # The evaluation of the held-out text predicts its first token too, after end-of-text.
    (split,) = opened.held_out
    tokens = split.read(np.array([0]), split.tokens)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = tokenizer.decode(tokens[tokens != split.eot_id])
    (tmp_path / "held_out.txt").write_text(text)
    monkeypatch.setattr("gpt_pjit.evaluate.command.start_devices", lambda **_: None)
    capsys.readouterr()
    task = f"file:{tmp_path / 'held_out.txt'}"
    out = tmp_path / "results"
    flags = [f"--checkpoint={tmp_path / 'averaged'}", f"--tasks={task}", f"--out={out}"]
    call("gpt_pjit.evaluate.command", [*flags, "--json"])
    ours = json.loads(capsys.readouterr().out)[task]["bits_per_byte"]
    results = read_results(out / "results.json")
    export(tmp_path / "averaged", tmp_path / "carded", dtype="float32", results=results)
    card = (tmp_path / "carded" / "README.md").read_text()
    assert f"| {task} | bits_per_byte | {ours:.4f} ± " in card
    nats, ids = 0.0, tokenizer(text)["input_ids"]
    for request in rolling_requests(ids, tokenizer.eos_token_id, TRAINED, TRAINED):
        row = torch.tensor(request.tokens)
        with torch.no_grad():
            logits = theirs(row[None, :-1]).logits[0]
        each = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
        nats += float(each[-request.scored :].double().sum())
    assert nats / np.log(2) / len(text.encode()) == pytest.approx(ours, abs=1e-4)
