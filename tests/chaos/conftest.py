import os
import signal

import pytest

from tests.chaos.harness import Trainer, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def golden(tmp_path_factory, corpus):
    """`golden(processes=2, ...)`: a run of that shape which nothing has disturbed."""
    made = {}

    def of(**options):
        key = str(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("golden")
            made[key] = Trainer(folder / "run", corpus, **options)
            ended = made[key].run()
            assert set(ended.codes) == {0}, ended.errors
        return made[key]

    return of


@pytest.fixture
def trainer(tmp_path, corpus):
    """`trainer("name", processes=2, ...)`: a run in a folder of its own."""
    made = []

    def make(name="run", **options):
        made.append(Trainer(tmp_path / name, corpus, **options))
        return made[-1]

    yield make
    orphans = [process for run in made for process in run.survivors()]
    for process in orphans:
        os.kill(int(process), signal.SIGKILL)
    assert orphans == []
