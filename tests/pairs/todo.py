"""What the package does not do yet: test ids, "pair/format". To be empty when names are done."""

TODO: frozenset[str] = frozenset()
