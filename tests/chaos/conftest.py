import pytest

from tests.chaos.harness import Trainer, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Of compiled programs: a restart takes seconds."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def trainer(tmp_path, corpus, cache):
    """`trainer("name", processes=2, ...)`: a run in a folder of its own."""
    made = []

    def make(name="run", **options):
        made.append(Trainer(tmp_path / name, corpus, **{"cache": cache} | options))
        return made[-1]

    yield make
    for run in made:
        assert run.survivors() == [], "orphans"
