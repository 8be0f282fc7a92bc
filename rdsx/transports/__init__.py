"""How bytes travel: `base` is the contract, `stream` carries RDS over any byte stream, `tcp` makes such streams, `capture` records them."""
