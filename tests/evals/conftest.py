"""The scripts of evals/ are not a package: they find one another beside themselves, and so do their tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "evals"))
