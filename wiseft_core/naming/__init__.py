"""How adapter tensors and modules are spelled: one file per writer of names. Strings only, no torch."""
