"""Where compiled kernels are kept on disk."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where compiled kernels are kept: MAMBA_CACHE, or mamba_ssm in the user's folder for caches."""
    if asked := os.environ.get("MAMBA_CACHE"):
        return Path(asked)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mamba_ssm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mamba_ssm"
