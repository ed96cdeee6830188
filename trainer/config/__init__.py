"""Declare the settings of a run: what each means, its range and its default, a module for each section.

What a default comes to on this machine or this dataset is decided in `plan`. Read `config.py` first.
"""
