import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
    """No silent dtype promotion in the model; optax promotes its own counters."""
    with jax.numpy_dtype_promotion("strict"):
        yield
