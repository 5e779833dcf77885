"""Tests of flow B."""
