"""Random kills, fuzzed configs, damaged files and processes at once, against every script; each trial is repeatable.

A trial is determined by a seed, its kind and its number. See docs/campaign.md.
"""
