import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `from gloo import run_gloo` also in spawned processes
