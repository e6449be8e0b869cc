# LAYER 1: extern declarations only, with upstream's names, of what this package calls.
