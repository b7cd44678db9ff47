"""From a chosen alpha to an edited model: which tokens, how strongly, at which site, and the search for alpha."""
