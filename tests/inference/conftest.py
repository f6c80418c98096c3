import sys
from pathlib import Path

import vlm  # noqa: F401  before transformers, which imports torchvision

sys.path.insert(0, str(Path(__file__).parent))  # `from foreign_models import clip_folder`
