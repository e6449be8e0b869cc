"""The packages under test, built beforehand: .ci/run builds them, since that takes a compiler and minutes.

LLAVA_NATIVE_SDIST and LLAVA_NATIVE_WHEEL name them.
"""

import os
from pathlib import Path

import pytest


def from_environment(name: str) -> Path:
    if name not in os.environ:
        pytest.skip(f"{name} is not set; .ci/run sets it")
    path = Path(os.environ[name]).resolve()
    assert path.exists(), f"{name}={path} does not exist"
    return path


@pytest.fixture(scope="session")
def sdist() -> Path:
    return from_environment("LLAVA_NATIVE_SDIST")


@pytest.fixture(scope="session")
def wheel() -> Path:
    return from_environment("LLAVA_NATIVE_WHEEL")
