"""Any model, cut at places it has already: how its forward is followed, where it can be cut, what the parts are."""
