"""Secrets of the environment reach no file and no output; no source of ours runs what it reads."""

import ast
import sys

import pytest

from tests.chaos.harness import FLAGS, write_corpus
from tests.helpers import ROOT
from tests.processes import run, run_flags

SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "MY_JAX_PASSWORD",
)
CANARY = "canary-7f3a91"
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "torch.load", "yaml.load"}
BANNED_OPTIONS = {"allow_pickle", "trust_remote_code"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}


@pytest.mark.slow
def test_no_file_of_a_run_and_no_output_holds_a_secret(tmp_path):
    (tmp_path / "corpus").mkdir()
    fields = FLAGS | {"data.text": f"{write_corpus(tmp_path / 'corpus')}/*.txt", "optim.steps": 4}
    fields |= {"sample.tokens": 4, "eval.every": 4}
    commands = [
        ["train", *run_flags(tmp_path / "run", fields)],
        ["checkpoint", "grow", f"{tmp_path / 'run'}", "--layers=3", f"--out={tmp_path / 'new'}"],
        ["generate", f"--checkpoint={tmp_path / 'new'}", "--prompt=a", "--max_new_tokens=2"],
        ["generate", f"--checkpoint={tmp_path / 'none'}", "--prompt=a"],
    ]
    secrets = {name: f"{CANARY}-{number}" for number, name in enumerate(SECRETS)}
    codes, outputs = [], []
    for command in commands:
        done = run([sys.executable, "-m", "gpt_pjit", *command], devices=2, **secrets)
        codes.append(done.returncode)
        outputs.append(done.stdout + done.stderr)
    assert codes == [0, 0, 0, 78], outputs
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 60
    outputs += [str(path) + path.read_bytes().decode(errors="replace") for path in files]
    assert not [text[:200] for text in outputs if CANARY in text]


def test_no_source_runs_what_it_reads():
    found = []
    for path in sorted((ROOT / "gpt_pjit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names, line = [], f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            elif isinstance(node, ast.Call):
                permits = BANNED_OPTIONS & {keyword.arg for keyword in node.keywords}
                if ast.unparse(node.func) in BANNED_CALLS or permits:
                    found.append(f"{line}: {ast.unparse(node)}")
            found += [f"{line}: {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
    assert not found, "\n".join(found)
