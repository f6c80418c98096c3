import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `from gloo import run_gloo` also in spawned processes


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Tests run in processes of their own (-n), whose warnings name modules that the first one imports."""
    import vlm  # noqa: F401  torchvision does not import without it


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small toy shards under `data/toy`; runs go to `runs`, each under a name of its own."""
    from toy_run import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))
