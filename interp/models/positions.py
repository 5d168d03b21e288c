"""The names of positions that need no mark; nothing here loads torch."""

Position = str | int  # the name of a position, or a number: from 0, or from the last token, -1, backwards

FIRST, LAST = "first", "last"                # of every row: after its prefix, and the token before the answer
PROBED, EVERYWHERE = "probed", "everywhere"  # in the code only: where a row is probed, and all tokens
RESERVED = (FIRST, LAST, PROBED, EVERYWHERE)
