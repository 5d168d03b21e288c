"""Every failure that a user's machine or hand can bring about, by force: random, seeded, and repeated by one command.

A trial is determined by a seed, its kind and its number. See docs/campaign.md.
"""
