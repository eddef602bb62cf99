"""Tests of vpgtrans.transfer."""
