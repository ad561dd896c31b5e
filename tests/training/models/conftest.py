import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """On a busy machine, networks this small wait for threads far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
