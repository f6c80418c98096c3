import sys
from pathlib import Path

import vlm  # noqa: F401  before timm, which imports torchvision

sys.path.insert(0, str(Path(__file__).parent))  # `from tiny_model import tiny_mapping`
