import subprocess
import sys


def test_importing_data_brings_no_heavy_libraries():
    code = "import sys; import xpnet.data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"PIL", "pooch", "requests", "cupy", "sklearn", "scipy", "matplotlib", "multiprocessing", "tarfile"}
    assert heavy.isdisjoint(loaded)
    assert "xpnet.data.loader" in loaded
