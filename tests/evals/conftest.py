"""The scripts of evals/ and scripts/ are no packages: they find one another beside themselves; so do their tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("evals", "scripts")]
