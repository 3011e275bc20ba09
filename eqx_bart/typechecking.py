"""How annotations are checked: by beartype, where an int is a float, as in PEP 484."""

from beartype import beartype, BeartypeConf


typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
