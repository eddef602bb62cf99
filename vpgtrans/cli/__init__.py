"""The command line: parse, one call into the core, render."""


def main() -> None:
    """Run the command line."""
    from vpgtrans.cli.app import main as run

    run()
