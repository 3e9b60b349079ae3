"""What a model is made of, and which operations a plan on it costs. Nothing here loads weights.

``role_table`` has everything that is known by role; ``sites`` the records; ``read`` maps a model, ``anatomy_cache``
once per config; ``flops`` prices plans along ``backward_reach``. Reading goes ``structure`` (which matrices, owned by
whom) → ``trace`` (one observed forward pass without memory) and ``names`` (two opinions) → ``compare`` (their
agreement, checked against ``config_sizes``); ``probe`` is a third opinion for `map --prove`.
"""
