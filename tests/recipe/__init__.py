"""Tests of vpgtrans.recipe."""
