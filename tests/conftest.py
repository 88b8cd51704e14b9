"""What all tests share: where real data is, and how hypothesis runs."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if os.environ.pop("PYTEST_XDIST_WORKER", None):  # several processes test at once: each takes its part of the cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start

settings.register_profile("sdkernels", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("sdkernels")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, given by SDKERNELS_DATA."""
    given = os.environ.get("SDKERNELS_DATA")
    if given is None:
        pytest.skip("real data: set SDKERNELS_DATA to a folder with mnist/")
    return Path(given)


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone(request: pytest.FixtureRequest):
    """The package never reads or writes torch's global random state, unless a test seeds it for itself."""
    if "seeds_torch" in request.fixturenames:
        yield
        return
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"


@pytest.fixture
def seeds_torch():
    """For tests that build random networks and inputs by the global random state."""
    torch.manual_seed(0)
