"""What a model is made of, and what a plan on it costs.

``sites`` holds the words, ``load`` finds and builds models, ``read`` maps them, ``cost`` prices plans. Reading goes
``structure`` (which matrices, owned by whom) → ``flow`` (one observed forward pass without memory) → ``trace`` and
``names`` (two opinions) → ``roles`` (their agreement, checked against ``sizes``).
"""
