"""Tests of vpgtrans.cli."""
