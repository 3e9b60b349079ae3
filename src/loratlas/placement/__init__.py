"""From a text to an exact table of sites and ranks: the language, its resolution, budgets, plans."""
