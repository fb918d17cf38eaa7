"""Mathematics: a strict reader of answers, and the reading of the released code."""
