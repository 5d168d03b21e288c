"""What the scripts of this project share: one idea a module, listed in docs/code.md."""

import os

# Before torch is loaded: its threads should not wait actively for each other, which beside another busy process takes
# twice as long. A user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
