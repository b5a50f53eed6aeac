"""Functional tests: does the partner of a feature do the same thing in the language model?"""
