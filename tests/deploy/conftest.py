"""What every test of integer networks runs under."""

import pytest
import small


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield
