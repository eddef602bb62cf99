"""Launcher for a checkout: ``python cli.py ...``."""

from vpgtrans.cli import main

main()
