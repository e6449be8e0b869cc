"""Helpers shared by the tests: generated models and the references that they are checked against."""
