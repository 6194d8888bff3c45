import os
from pathlib import Path

import pytest

_FOLDER = os.environ.get("XPNET_DATA")


@pytest.fixture
def mnist_folder():
    """The folder in $XPNET_DATA as it was when the tests began, if it holds MNIST and Fashion-MNIST."""
    if not _FOLDER or not all((Path(_FOLDER) / name).is_dir() for name in ("mnist", "fashion-mnist")):
        pytest.skip("the files of MNIST and Fashion-MNIST are not in $XPNET_DATA")
    return _FOLDER
