"""Several runs trained side by side over one frozen base, each equal to the run alone."""
