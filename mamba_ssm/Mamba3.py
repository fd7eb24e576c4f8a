"""Not in this package."""

from mamba_ssm.errors import LeftOutError

# `from mamba_ssm import Mamba3` comes here, because the package has no such attribute; so hasattr and getattr see none.
raise LeftOutError("Mamba-3")
