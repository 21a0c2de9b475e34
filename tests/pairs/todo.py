"""What the package does not do yet: test ids, "pair/format". To be empty when names are done."""

TODO: frozenset[str] = frozenset(
    {"jetmoe_parameters"}
)  # a parameter called "weight" with three axes: taken for a Conv1d
