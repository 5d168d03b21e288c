"""What the scripts of this project share: one idea a module, listed in docs/code.md."""
