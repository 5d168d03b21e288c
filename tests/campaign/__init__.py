"""Random kills, fuzzed configs and damaged files, against every script; each trial is repeatable: docs/campaign.md."""
