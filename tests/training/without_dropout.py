"""The command with no dropout, which each process draws for itself: what is left is the same in any number of them."""

from mamba_ssm.esi import reader

reader.DROPOUT = 0.0

if __name__ == "__main__":
    from mamba_ssm.cli.main import app

    app()
